"""Run this engine and its peers side by side, and write the tables of the README and docs/performance.md.

    python benchmarks/peers.py --prepare --models DIR --llamacpp PYTHON          make the model files
    python benchmarks/peers.py --models DIR --llamacpp PYTHON --openvino PYTHON --vllm PYTHON
        measure, save results/peers-YYYY-MM-DD.json, write the tables
    python benchmarks/peers.py --table              the tables alone, from the newest result
    python benchmarks/peers.py --check              exit 1 when the documents show anything else

PYTHON is the interpreter of an environment that has the engine; one that is not named is left out. Every row
runs once a round in a process of its own, so that engines alternate; the result is saved after each. Keep the
machine otherwise idle: a round of all rows takes about ten minutes on two cores. How each figure is measured
stands in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from make_table import DATE, ROOT, newest, replace_between
from side_by_side.figures import FIGURES, QUICK_SHAPES, ROWS, SHAPES, TIGHTPACK, Row, figures_of
from side_by_side.models import ORIGINAL, prepare, read_geometry, streamed_bytes
from side_by_side.roofline import MachinePeaks, ceilings
from side_by_side.sitting import Protocol, RunnerError, has_http, measure_http, measure_row
from side_by_side.table import document_tables, median_peaks, readme_table

BEGIN = "<!-- peers-table: begin -->"
END = "<!-- peers-table: end -->"
PATTERN = f"peers-{DATE}.json"


def measure(options: argparse.Namespace) -> None:
    """All rounds, saved as they come."""
    pythons = _pythons(options)
    rows = _chosen_rows(options, pythons)
    path, report = _open_report(options, rows)
    shapes = tuple((n, s, i, o) for n, s, i, o in report["protocol"]["shapes"])
    protocol = Protocol(
        shapes, report["protocol"]["threads"], report["protocol"]["repeats"], report["geometry"]["vocab_size"]
    )
    machine_peaks = MachinePeaks()
    # Runners are in sessions of their own; unwinding ends them, so that none outlives this process.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    entries = {entry["key"]: entry for entry in report["rows"]}
    for number in range(1, options.rounds + 1):
        report["peaks"].append(machine_peaks.measure() | {"load_average": os.getloadavg()[0]})
        peaks = median_peaks(report)
        for row in rows:
            model = options.models / row.model
            entry = entries[row.key]
            try:
                found = measure_row(row, pythons[row.runner], model, protocol)
                if has_http(row) and options.http:
                    found["http"] = measure_http(row, pythons[row.runner], model, protocol)
            except (RunnerError, RuntimeError, OSError) as error:
                print(f"round {number}, {row.key}: failed: {error}", file=sys.stderr, flush=True)
                entry["failures"].append(str(error)[-500:])
                _save(path, report)
                continue
            entry["version"] = found.pop("version")
            found.pop("engine")
            entry["rounds"].append(found)
            _save(path, report)
            bound = ceilings(row, report["geometry"], entry["weight_bytes"], peaks, shapes)
            print(f"round {number}, {row.key}: {_summary(figures_of(found, shapes), bound)}", flush=True)
    print(f"saved {path}")


def _pythons(options: argparse.Namespace) -> dict[str, str]:
    """Runner to interpreter, of the engines that were named."""
    named = {runner: getattr(options, runner) for runner in dict.fromkeys(row.runner for row in ROWS)}
    return {runner: python for runner, python in named.items() if python is not None}


def _chosen_rows(options: argparse.Namespace, pythons: Mapping[str, str]) -> list[Row]:
    wanted = None if options.only is None else [key.strip() for key in options.only.split(",")]
    unknown = [key for key in wanted or () if key not in {row.key for row in ROWS}]
    if unknown:
        raise ValueError(f"there is no row {unknown[0]!r}; there are: {', '.join(row.key for row in ROWS)}")
    extra = json.loads(options.engine_args)
    rows = []
    for row in ROWS:
        if row.runner not in pythons or (wanted is not None and row.key not in wanted):
            continue
        if not (options.models / row.model).exists():
            raise ValueError(f"{options.models} has no {row.model}; --prepare makes it")
        rows.append(replace(row, settings={**row.settings, **extra}) if row.runner == TIGHTPACK else row)
    if not rows:
        raise ValueError("no row is left to run; name the peers' interpreters or other rows with --only")
    return rows


def _open_report(options: argparse.Namespace, rows: Sequence[Row]) -> tuple[Path, dict[str, Any]]:
    """The sitting's file and content: new, or with --more the one of today."""
    from tightpack.benchmarking.machine import describe_machine

    now = datetime.now(UTC)
    path = options.results / ("peers-quick.json" if options.quick else f"peers-{now:%Y-%m-%d}.json")
    report: dict[str, Any] = {
        "date": now.isoformat(timespec="seconds"),
        "model": options.model_name,
        "machine": describe_machine(),
        "protocol": {
            "shapes": [list(shape) for shape in (QUICK_SHAPES if options.quick else SHAPES)],
            "threads": options.threads,
            "repeats": options.repeats,
        },
        "geometry": read_geometry(options.models / ORIGINAL).as_dict(),
        "peaks": [],
        "rows": [],
    }
    if path.exists() and not options.quick:
        if options.more:
            before = json.loads(path.read_text(encoding="utf-8"))
            for name in ("model", "machine", "protocol", "geometry"):
                if before[name] != report[name]:
                    raise ValueError(f"{path.name} was measured with another {name}: {before[name]}")
            report = before
        elif not options.replace:
            raise ValueError(f"{path} exists: --more adds rounds to it, --replace begins it again")
    known = {entry["key"]: entry for entry in report["rows"]}
    for row in rows:
        known.setdefault(
            row.key,
            {
                "key": row.key,
                "engine": row.engine,
                "weights": row.weights,
                "weight_bytes": streamed_bytes(options.models / row.model),
                "settings": dict(row.settings),
                "failures": [],
                "rounds": [],
            },
        )
    report["rows"] = [known[row.key] for row in ROWS if row.key in known]
    return path, report


def _save(path: Path, report: Mapping[str, Any]) -> None:
    """Whole or not at all: a stop in the middle of it leaves what was saved before."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _summary(found: Mapping[str, float], bound: Mapping[str, float]) -> str:
    texts = []
    for figure in FIGURES:
        if figure.name in found:
            share = f" ({found[figure.name] / bound[figure.name]:.0%})" if figure.name in bound else ""
            texts.append(f"{figure.name} {found[figure.name]:.{figure.decimals}f}{share}")
    return ", ".join(texts)


def update_documents(options: argparse.Namespace) -> int:
    """Write, or with --check compare, both tables. Before anything is measured they are empty."""
    try:
        result = newest(options.results, PATTERN, "")
    except ValueError:
        report, name = None, "no result yet"
    else:
        report, name = json.loads(result.read_text(encoding="utf-8")), result.name
    stale = []
    for document, render, up in (
        (options.readme, readme_table, ""),
        (options.document, document_tables, "../"),
    ):
        table = "" if report is None else render(report, f"{up}benchmarks/results/{name}")
        before = document.read_text(encoding="utf-8")
        after = replace_between(before, table, BEGIN, END, document.name)
        if before != after:
            stale.append(document.name)
            if not options.check:
                document.write_text(after, encoding="utf-8")
    if stale and options.check:
        print(f"{' and '.join(stale)} not as {name} gives: run python benchmarks/peers.py --table")
        return 1
    print(f"{options.readme.name} and {options.document.name} show {name}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.table or options.check:
            return update_documents(options)
        if options.models is None:
            raise ValueError("--models names the directory of the model files; --prepare makes them")
        if options.prepare:
            prepare(options.models, options.tightpack, options.llamacpp, options.source)
            return 0
        measure(options)
        return 0 if options.quick else update_documents(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, metavar="DIR", help="of the model files")
    parser.add_argument("--prepare", action="store_true", help="make the model files that DIR lacks")
    parser.add_argument(
        "--source", type=Path, help="a GGUF file to prepare from; without it, the bundled one"
    )
    parser.add_argument("--model-name", default="SmolLM2-135M", help="for the caption")
    parser.add_argument("--tightpack", default=sys.executable, metavar="PYTHON")
    for peer in ("llamacpp", "openvino", "vllm"):
        parser.add_argument(f"--{peer}", metavar="PYTHON", help="its interpreter; left out if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2, help="of each shape in a process; the best counts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", help="rows, comma-separated, as engine/weights")
    parser.add_argument("--engine-args", default="{}", metavar="JSON", help="further ones for tightpack")
    parser.add_argument("--no-http", dest="http", action="store_false", help="leave the HTTP column out")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run? Gives no table")
    parser.add_argument("--more", action="store_true", help="add rounds to today's result")
    parser.add_argument("--replace", action="store_true", help="begin today's result again")
    parser.add_argument("--table", action="store_true", help="measure nothing; rewrite the tables")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a table is stale")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
