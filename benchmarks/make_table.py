"""Write the README's benchmark table from the newest dated result in benchmarks/results/.

    python benchmarks/make_table.py            rewrite the table between the markers
    python benchmarks/make_table.py --check    exit 1 when the table is not what the result gives

Needs nothing but Python. Results are named YYYY-MM-DD-policies.json; the last by name is taken.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- policies-table: begin -->"
END = "<!-- policies-table: end -->"
DATE = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"

Run = Mapping[str, Any]


def newest_result(results: Path) -> Path:
    return newest(results, f"{DATE}-policies.json", "benchmarks/policies.sh makes one")


def newest(results: Path, pattern: str, remedy: str) -> Path:
    """The last by name of the dated results that match `pattern`. Raises ValueError where there is none."""
    dated = sorted(results.glob(pattern))
    if not dated:
        raise ValueError(f"{results} holds no {pattern.replace(DATE, 'YYYY-MM-DD')}; {remedy}")
    return dated[-1]


def render(report: Mapping[str, Any], source: str) -> str:
    """The table, and where its numbers come from, as markdown."""
    lines = [_caption(report, source), "", *_policy_table(report["runs"])]
    if "long_prompt" in report:
        scene = report["long_prompt"]
        lines += ["", f"{_capitalized(scene['workload']['description'])}:", "", *_gap_table(scene["runs"])]
    return "\n".join(lines)


def replace_table(readme: str, table: str) -> str:
    """The README with what stands between the markers replaced. Raises ValueError without both, in order."""
    return replace_between(readme, table, BEGIN, END, "README")


def replace_between(text: str, table: str, begin: str, end: str, name: str = "document") -> str:
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the {name} needs these two lines once each, in this order:\n{begin}\n{end}")
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n{table}\n{end}{tail}"


def _caption(report: Mapping[str, Any], source: str) -> str:
    machine, executor, workload = report["machine"], report["executor"], report["workload"]
    on_cpu = executor["device"] == "cpu"
    where = f"{executor['threads']} threads of {machine['cpu']}" if on_cpu else executor["device"]
    return (
        f"{_capitalized(workload['description'])}; {report['model']} in {executor['dtype']} on {where}"
        f" ({report['date'][:10]}, [data]({source}))."
    )


def _policy_table(runs: Sequence[Run]) -> list[str]:
    columns = (
        ("output tokens/s", lambda run: run["output_tokens_per_s"], 1, 0, max),
        ("TTFT p50, s", lambda run: run["ttft_s"]["p50"], 1, 2, min),
        ("TTFT p99, s", lambda run: run["ttft_s"]["p99"], 1, 2, min),
        ("TPOT p50, ms", lambda run: _gap(run, "tpot_s", "p50"), 1000, 0, min),
        ("ITL p99, ms", lambda run: _gap(run, "itl_s", "p99"), 1000, 0, min),
        ("goodput, requests/s", lambda run: run["goodput_requests_per_s"], 1, 2, max),
    )
    return _table(runs, columns)


def _gap_table(runs: Sequence[Run]) -> list[str]:
    columns = (
        ("ITL p50, ms", lambda run: _gap(run, "itl_s", "p50"), 1000, 0, min),
        ("ITL p99, ms", lambda run: _gap(run, "itl_s", "p99"), 1000, 0, min),
        ("longest gap, ms", lambda run: _gap(run, "itl_s", "max"), 1000, 0, min),
        ("output tokens/s", lambda run: run["output_tokens_per_s"], 1, 0, max),
    )
    return _table(runs, columns)


def _table(runs: Sequence[Run], columns: Sequence[tuple[str, Any, float, int, Any]]) -> list[str]:
    """Each column: title, value of a run, factor, decimals, and which of max and min is best (in bold)."""
    rows = [[f"`{run['policy']}`"] for run in runs]
    for _, value_of, factor, decimals, best_of in columns:
        texts = [
            None if (value := value_of(run)) is None else f"{value * factor:.{decimals}f}" for run in runs
        ]
        # Compared as printed: two cells that read the same are equally good.
        best = best_of((float(text) for text in texts if text is not None), default=None)
        for row, text in zip(rows, texts, strict=True):
            row.append("–" if text is None else f"**{text}**" if float(text) == best else text)
    header = ["policy", *(column[0] for column in columns)]
    rule = ["---", *["---:"] * len(columns)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]


def _gap(run: Run, latency: str, which: str) -> float | None:
    """None for a run that handed over all tokens of a request together: its gaps of zero mean nothing."""
    return None if run["itl_s"]["max"] == 0 else run[latency][which]


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the table is stale")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    try:
        result = newest_result(options.results)
        table = render(json.loads(result.read_text(encoding="utf-8")), f"benchmarks/results/{result.name}")
        before = options.readme.read_text(encoding="utf-8")
        after = replace_table(before, table)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if before == after:
        print(f"{options.readme.name} shows {result.name}")
        return 0
    if options.check:
        print(
            f"{options.readme.name} does not show {result.name}: run python benchmarks/make_table.py",
            file=sys.stderr,
        )
        return 1
    options.readme.write_text(after, encoding="utf-8")
    print(f"{options.readme.name} now shows {result.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
