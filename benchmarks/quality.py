"""Quantize with every method, measure what each costs, and write the table of docs/quantization.md.

    python benchmarks/quality.py MODEL TEXT    measure, save results/quality-YYYY-MM-DD.json, write the table
    python benchmarks/quality.py --table       the table alone, from the newest result
    python benchmarks/quality.py --check       exit 1 when the document shows anything else

Calibrates on the first 96 x 512 tokens of TEXT and measures on the last 64 x 512. With TEXT WikiText-2's
validation text and MODEL SmolLM2-135M (`tightpack convert smollm2-135m -o DIR`) it takes about an hour on two
cores. Results are saved row by row. `--only` names some of the rows; those that the same day's result has of
the others are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from make_table import DATE, ROOT, Run, newest, replace_between

BEGIN = "<!-- quality-table: begin -->"
END = "<!-- quality-table: end -->"
PATTERN = f"quality-{DATE}.json"

# Row to options of `tightpack.quantize`; 4-bit rows have groups of 64.
ROWS: Mapping[str, Mapping[str, Any]] = {
    "RTN symmetric": {"method": "rtn", "group_size": 64, "symmetric": True},
    "RTN": {"method": "rtn", "group_size": 64},
    "GPTQ symmetric": {"method": "gptq", "group_size": 64, "symmetric": True},
    "GPTQ": {"method": "gptq", "group_size": 64},
    "AWQ": {"method": "awq", "group_size": 64},
    "AWQ + GPTQ": {"method": "awq-gptq", "group_size": 64},
    "AWQ + GPTQ mixed to 4.5 bits": {"method": "awq-gptq", "group_size": 64, "target_bits": 4.5},
    "int8 weights": {"method": "int8"},
    "int8 weights in groups of 64": {"method": "int8", "group_size": 64},
    "int8 weights with fp8 KV cache": {"method": "int8", "kv_cache_dtype": "fp8"},
    "int8 weights with int8 KV cache": {"method": "int8", "kv_cache_dtype": "int8"},
    "SmoothQuant (W8A8)": {"method": "smoothquant"},
    "LLM.int8": {"method": "llm.int8"},
    "fp8 (W8A8)": {"method": "fp8"},
    "fp8 with fp8 KV cache": {"method": "fp8", "kv_cache_dtype": "fp8"},
}


def measure(
    model: str, text: Path, rows: Sequence[str], samples: int, judged: int, length: int, keep: Path | None
) -> Iterator[dict[str, Any]]:
    """One run a row; each output is deleted unless `keep` names a directory for them."""
    from tightpack import QuantizationConfig, quantize

    with tempfile.TemporaryDirectory() as scratch:
        for row in rows:
            config = QuantizationConfig(
                **ROWS[row], samples=samples, sequence_length=length, evaluation_samples=judged
            )
            output = (keep or Path(scratch)) / row.replace(" ", "-").replace("+", "and")
            shutil.rmtree(output.with_name(output.name + ".partial"), ignore_errors=True)
            report = quantize(model, output, config, calibration=text)
            quality, seconds = report.quality, report.seconds
            print(
                f"{row}: KL {quality['kl']:.4f}, perplexity {quality['perplexity']:.3f}, "
                f"{seconds['quantize']:.0f} s",
                flush=True,
            )
            if keep is None:
                shutil.rmtree(output)
            yield {
                "row": row,
                "scheme": report.recipe,
                "bits_per_weight": report.bits_per_weight,
                "perplexity": quality["perplexity"],
                "reference_perplexity": quality["reference_perplexity"],
                "kl": quality["kl"],
                "top1_agreement": quality["top1_agreement"],
                "tokens": quality["tokens"],
                "quantize_seconds": seconds["quantize"],
                "evaluate_seconds": seconds["evaluate"],
                # Of the process so far: rows after the most demanding one repeat its peak.
                "peak_memory_bytes": report.peak_memory_bytes,
                "config": report.config,
            }


def render(report: Mapping[str, Any], source: str) -> str:
    """The table, and where its numbers come from, as markdown."""
    runs: Sequence[Run] = report["runs"]
    first = runs[0]
    header = ["", "bits a weight", "perplexity", "KL, nats", "top-1 agreement", "seconds"]
    rule = ["---", *["---:"] * (len(header) - 1)]
    body = [
        [
            run["row"],
            f"{run['bits_per_weight']:.2f}",
            f"{run['perplexity']:.2f}",
            f"{run['kl']:.4f}",
            f"{run['top1_agreement']:.3f}",
            f"{run['quantize_seconds']:.0f}",
        ]
        for run in runs
    ]
    original = ["original", "16", f"{first['reference_perplexity']:.2f}", "0", "1", ""]
    table = [f"| {' | '.join(row)} |" for row in (header, rule, original, *body)]
    caption = (
        f"{report['model']}, calibrated on {report['samples']} x {report['sequence_length']} tokens of "
        f"{report['text']}, measured on {report['evaluation_samples']} x {report['sequence_length']} "
        f"others of it; "
        f"{report['machine']['cores']} cores of {report['machine']['cpu']}, peak memory "
        f"{max(run['peak_memory_bytes'] or 0 for run in runs) / 2**30:.1f} GiB "
        f"({report['date'][:10]}, [data]({source}))."
    )
    return "\n".join([caption, "", *table])


def save(path: Path, report: dict[str, Any]) -> None:
    """Rows measured the same day and not now are kept, in the order of ROWS."""
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        comparable = ("model", "text", "samples", "sequence_length", "evaluation_samples")
        if all(before.get(name) == report[name] for name in comparable):
            now = {run["row"] for run in report["runs"]}
            report["runs"] += [run for run in before["runs"] if run["row"] not in now]
    order = list(ROWS)
    report["runs"].sort(key=lambda run: order.index(run["row"]))
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", help="the original, in bf16")
    parser.add_argument("text", nargs="?", type=Path)
    parser.add_argument("--only", help=f"rows, comma-separated, of: {'; '.join(ROWS)}")
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--evaluation-samples", type=int, default=64)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--keep", type=Path, help="a directory for the quantized checkpoints")
    parser.add_argument("--table", action="store_true", help="measure nothing; rewrite the table")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the table is stale")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "quantization.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    try:
        if not (options.table or options.check):
            if options.model is None or options.text is None:
                parser.error("give MODEL and TEXT, or --table or --check")
            _measure_and_save(options)
        result = newest(options.results, PATTERN, "python benchmarks/quality.py MODEL TEXT makes one")
        source = f"../benchmarks/results/{result.name}"
        table = render(json.loads(result.read_text(encoding="utf-8")), source)
        before = options.document.read_text(encoding="utf-8")
        after = replace_between(before, table, BEGIN, END)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check and before != after:
        print(
            f"{options.document.name} does not show {result.name}: run python benchmarks/quality.py --table"
        )
        return 1
    if before != after:
        options.document.write_text(after, encoding="utf-8")
    print(f"{options.document.name} shows {result.name}")
    return 0


def _measure_and_save(options: argparse.Namespace) -> None:
    from tightpack.benchmarking.machine import describe_machine

    rows = list(ROWS) if options.only is None else [row.strip() for row in options.only.split(",")]
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise ValueError(f"there is no row {unknown[0]!r}; there are: {'; '.join(ROWS)}")
    now = datetime.now(UTC)
    for run in measure(
        options.model,
        options.text,
        rows,
        options.samples,
        options.evaluation_samples,
        options.sequence_length,
        options.keep,
    ):
        report = {
            "date": now.isoformat(timespec="seconds"),
            "model": Path(options.model).name,
            "text": options.text.name,
            "samples": options.samples,
            "sequence_length": options.sequence_length,
            "evaluation_samples": options.evaluation_samples,
            "machine": describe_machine(),
            "runs": [run],
        }
        save(options.results / f"quality-{now:%Y-%m-%d}.json", report)


if __name__ == "__main__":
    sys.exit(main())
