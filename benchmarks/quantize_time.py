"""How long GPTQ takes here and in llm-compressor, in one sitting.

    python benchmarks/quantize_time.py MODEL TEXT --peer-python VENV/bin/python [--rounds 2]

Each round quantizes MODEL (SmolLM2-135M: `tightpack convert smollm2-135m -o DIR`) to 4 bits with zero-points
in groups of 64, calibrated on the first 96 x 512 tokens of TEXT, once with each program, in a process of its
own; the order turns about from round to round. Counted is quantizing alone: not loading, measuring what it
cost, or saving. Prints medians and peak memory, and saves results/quantize-time-YYYY-MM-DD.json. On two cores
a round takes about five minutes, during which the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEER = Path(__file__).resolve().parent / "peers" / "quantize_llmcompressor.py"
OURS, THEIRS = "tightpack", "llm-compressor"


def quantize_here(model: str, text: str, samples: int, length: int, group_size: int, dtype: str) -> None:
    """In a process of its own: prints one line of JSON."""
    from tightpack import QuantizationConfig, quantize

    config = QuantizationConfig(
        method="gptq",
        group_size=group_size,
        samples=samples,
        sequence_length=length,
        evaluation_samples=1,
        dtype=dtype,
    )
    with tempfile.TemporaryDirectory() as scratch:
        report = quantize(model, Path(scratch) / "out", config, calibration=text)
    # Peak memory is of the whole process, the measuring included.
    line = {
        "seconds": report.seconds["quantize"],
        "peak_memory_bytes": report.peak_memory_bytes,
        "version": version("tightpack"),
    }
    print(json.dumps(line), flush=True)


def run(command: Sequence[str]) -> dict[str, Any]:
    """The last line that the command prints, which is JSON; RuntimeError with what it said otherwise."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def summary(runs: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    medians = {}
    for program in (OURS, THEIRS):
        mine = [entry for entry in runs if entry["program"] == program]
        medians[program] = statistics.median(entry["seconds"] for entry in mine)
        peak = max(entry["peak_memory_bytes"] or 0 for entry in mine)
        each = ", ".join(f"{entry['seconds']:.1f}" for entry in mine)
        lines.append(
            f"{program} {mine[0]['version']}: median {medians[program]:.1f} s of {len(mine)} ({each}), "
            f"peak memory {peak / 2**30:.2f} GiB"
        )
    lines.append(f"{OURS} takes {medians[OURS] / medians[THEIRS]:.2f} of {THEIRS}'s time")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--peer-python", help="interpreter of an environment with llm-compressor")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--dtype", default="auto", help="of dense arithmetic here; theirs is in bfloat16")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    numbers = (options.samples, options.sequence_length, options.group_size)
    if options.here:
        quantize_here(options.model, str(options.text), *numbers, options.dtype)
        return 0
    if options.peer_python is None or options.rounds < 1:
        parser.error("give --peer-python, and at least one round")
    values = [options.model, str(options.text)]
    ours = [sys.executable, __file__, *values, "--here", "--dtype", options.dtype]
    for flag, number in zip(("--samples", "--sequence-length", "--group-size"), numbers, strict=True):
        ours += [flag, str(number)]
    commands = {OURS: ours, THEIRS: [options.peer_python, str(PEER), *values, *map(str, numbers)]}
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for program in (OURS, THEIRS) if number % 2 == 0 else (THEIRS, OURS):
            result = run(commands[program])
            runs.append({"program": program, "round": number, **result})
            print(f"round {number + 1}, {program}: {result['seconds']:.1f} s", flush=True)
    _save(options, runs)
    print(summary(runs))
    return 0


def _save(options: argparse.Namespace, runs: Sequence[Mapping[str, Any]]) -> None:
    from tightpack.benchmarking.machine import describe_machine

    now = datetime.now(UTC)
    report = {
        "date": now.isoformat(timespec="seconds"),
        "model": Path(options.model).name,
        "text": options.text.name,
        "samples": options.samples,
        "sequence_length": options.sequence_length,
        "group_size": options.group_size,
        "dtype": options.dtype,
        "machine": describe_machine(),
        "runs": list(runs),
    }
    path = options.results / f"quantize-time-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
