"""How long GPTQ takes here and in llm-compressor, in one sitting.

    python benchmarks/quantize_time.py MODEL TEXT --peer-python VENV/bin/python [--rounds 2]

Each round quantizes MODEL (SmolLM2-135M: `tightpack convert smollm2-135m -o DIR`) to 4 bits with zero-points
in groups of 64, calibrated on the first 96 x 512 tokens of TEXT, once with each program, in a process of its
own (here the `tightpack` command); the order turns about from round to round. Counted is quantizing alone:
not loading, measuring what it cost, or saving. Prints medians and peak memory, and saves
results/quantize-time-YYYY-MM-DD.json. On two cores a round takes about four minutes, during which the machine
should do nothing else.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEER = Path(__file__).resolve().parent / "peers" / "quantize_llmcompressor.py"
OURS, THEIRS = "tightpack", "llm-compressor"


def quantize_here(options: argparse.Namespace) -> dict[str, Any]:
    """By the command, as people run it; what its report says."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "quantized"
        command = [str(Path(sys.executable).with_name("tightpack")), "quantize", options.model]
        command += ["--output", str(output), "--method", "gptq", "--calibration", str(options.text)]
        for flag in ("samples", "sequence_length", "group_size", "dtype"):
            command += [f"--{flag.replace('_', '-')}", str(getattr(options, flag))]
        run([*command, "--evaluation-samples", "1"])
        report = json.loads((output / "tightpack_report.json").read_text(encoding="utf-8"))
    # Peak memory is of the whole process, the measuring included.
    return {
        "seconds": report["seconds"]["quantize"],
        "peak_memory_bytes": report["peak_memory_bytes"],
        "version": report["versions"]["tightpack"],
    }


def quantize_there(options: argparse.Namespace) -> dict[str, Any]:
    numbers = (options.samples, options.sequence_length, options.group_size)
    command = [options.peer_python, str(PEER), options.model, str(options.text), *map(str, numbers)]
    result: dict[str, Any] = json.loads(run(command).strip().splitlines()[-1])
    return result


def run(command: Sequence[str]) -> str:
    """What the command prints; RuntimeError with what it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
    return done.stdout


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
    parser.add_argument(
        "--peer-python", required=True, help="interpreter of an environment with llm-compressor"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--dtype", default="auto", help="of dense arithmetic here; theirs is in bfloat16")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    programs = {OURS: quantize_here, THEIRS: quantize_there}
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for program in (OURS, THEIRS) if number % 2 == 0 else (THEIRS, OURS):
            result = programs[program](options)
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
