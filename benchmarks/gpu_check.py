"""Build every GPU kernel, check it against its oracle, time it, and judge whole steps against their targets.

    python benchmarks/gpu_check.py                 on a GPU: all of it, in under ten minutes
    python benchmarks/gpu_check.py --kernels-only  without the whole steps
    python benchmarks/gpu_check.py --compile       without a GPU: compile for Hopper; registers, tensor cores
    python benchmarks/gpu_check.py --interpret     without a GPU: correctness alone, small shapes, on the CPU

Nothing is downloaded. Tables come last; on a GPU the result goes to results/gpu-YYYY-MM-DD.json (--output),
with the device named. The exit code is 1 where a kernel is wrong or does not build, and 2 without a GPU. A
target missed is marked and is no error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

NO_GPU = (
    "gpu-check: no GPU that PyTorch can use was found; --interpret checks the kernels on the CPU, --compile "
    "compiles them for Hopper"
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--interpret", action="store_true", help="correctness alone, on the CPU")
    mode.add_argument("--compile", action="store_true", help="compile for Hopper without a GPU")
    mode.add_argument("--kernels-only", action="store_true", help="no whole steps")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--guesses", action="store_true", help="with --compile: the first tiles alone")
    parser.add_argument("--layers", type=int, default=32, help="layers of the whole steps' model")
    options = parser.parse_args(arguments)
    # Triton reads this when it is imported, so it is settled before anything imports it.
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ.pop("TRITON_INTERPRET", None)
    if options.interpret:
        return interpret(options)
    if options.compile:
        return compile_all(options)
    import torch

    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    return measure(options)


def interpret(options: argparse.Namespace) -> int:
    import torch
    from gpu.cases import TINY, all_cases

    from tightpack.torch_backend.kernels.context import KernelContext

    rows, wrong = [], 0
    for case in all_cases(TINY, KernelContext(torch.device("cpu"))):
        if options.only not in case.kernel:
            continue
        error = case.error()
        right = error <= case.tolerance
        wrong += not right
        rows.append([case.kernel, case.shape, f"{error:.1e}", _verdict(right)])
    print_table(["kernel", "rows x inputs x outputs", "error", ""], rows)
    print(f"{len(rows)} cases interpreted on the CPU, {wrong} wrong; no time here says anything of a GPU")
    if options.output:
        report = {"device": "CPU, interpreted", "cases": len(rows), "wrong": wrong}
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    return int(wrong > 0)


def compile_all(options: argparse.Namespace) -> int:
    from gpu.compile_only import CompilingContext
    from gpu.variants import compile_variants

    start, rows = time.perf_counter(), []
    context = CompilingContext()
    for what in compile_variants(context, options.only, guesses=options.guesses):
        made = context.compiled[-1]
        warps = made.options.get("num_warps", 4)
        counts = (f"{made.registers}", f"{made.spilled}", f"{made.shared / 1024:.0f}")
        rows.append([made.kernel.lstrip("_"), what, f"{warps}", *counts, made.tensor_cores or "-"])
    print_table(["kernel", "variant", "warps", "registers", "spilled", "shared KiB", "tensor cores"], rows)
    spilling = sum(made.spilled > 0 for made in context.compiled)
    print(
        f"{len(rows)} variants compiled for sm_90 in {time.perf_counter() - start:.0f} s, {spilling} spill "
        "registers; nothing was run"
    )
    if options.output:
        report = [
            {
                "kernel": made.kernel,
                "options": {k: str(v) for k, v in made.options.items()},
                "registers": made.registers,
                "spilled": made.spilled,
                "shared": made.shared,
                "instructions": dict(made.instructions),
            }
            for made in context.compiled
        ]
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(options: argparse.Namespace) -> int:
    import torch
    from gpu.cases import LLAMA, all_cases, peer_cases
    from gpu.flashinfer_peer import flashinfer_cases
    from gpu.timing import Clock

    from tightpack.torch_backend.kernels.context import KernelContext

    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    clock, context = Clock(device, repeats=20), KernelContext(device)
    bandwidth = clock.bandwidth()
    kernels: list[dict[str, Any]] = []
    for case in all_cases(LLAMA, context):
        if options.only in case.kernel:
            torch.cuda.nvtx.range_push(f"{case.kernel}, {case.shape}")
            error = case.error()
            kernels.append(_timed(case, clock, error, bandwidth))
            torch.cuda.nvtx.range_pop()
            print(f"{case.kernel}, {case.shape}: {_verdict(kernels[-1]['right'])}", file=sys.stderr)
    peers = [
        _timed(case, clock, None, bandwidth)
        for case in chain(peer_cases(LLAMA, device), flashinfer_cases(LLAMA, device))
        if options.only in case.kernel
    ]
    chosen = {" ".join(map(str, key)): str(tile) for key, tile in context.chosen.items()}
    context.finish_tuning()
    del clock
    torch.cuda.empty_cache()
    steps = [] if options.kernels_only else _whole_steps(options.layers, device)
    targets = judge(steps, kernels, peers, bandwidth) if steps else []
    wrong = sum(not each["right"] for each in kernels)
    report = {
        "device": name,
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "bandwidth_bytes_per_second": bandwidth,
        "model": f"random weights, Llama 3.1 8B's shapes, {options.layers} layers",
        "wrong": wrong,
        "kernels": kernels,
        "peers": peers,
        "tiles": chosen,
        "steps": steps,
        "targets": targets,
    }
    default = FOLDER / "results" / f"gpu-{report['date']}.json"
    output = options.output or default
    output.write_text(json.dumps(report, indent=1) + "\n")
    print_report(report)
    print(f"{len(kernels)} cases on {name}, {wrong} wrong; written to {output}")
    return int(wrong > 0)


def _timed(case: Any, clock: Any, error: float | None, bandwidth: float) -> dict[str, Any]:
    seconds = clock.seconds(case.run)
    return {
        "kernel": case.kernel,
        "shape": case.shape,
        "error": error,
        "right": error is None or error <= case.tolerance,
        "seconds": seconds,
        "bandwidth_share": case.moved / seconds / bandwidth,
        "operations_per_second": case.operations / seconds,
    }


def _whole_steps(layers: int, device: Any) -> list[dict[str, Any]]:
    from gpu.random_model import llama_8b
    from gpu.whole_step import measure as measure_step

    steps: list[dict[str, Any]] = []
    kinds = (("bf16", "bf16"), ("int4", "bf16"), ("fp8", "bf16"), ("fp8", "fp8"), ("int8", "bf16"))
    for scheme, kv_cache in kinds:
        print(f"whole steps: {scheme} weights, {kv_cache} cache", file=sys.stderr)
        results = measure_step(
            llama_8b(layers), scheme, kv_cache, device, streams=(1, 64), context=512, prompt=8192, steps=20
        )
        steps += [result.as_json() for result in results]
    return steps


def judge(
    steps: Iterable[dict[str, Any]],
    kernels: Iterable[dict[str, Any]],
    peers: Iterable[dict[str, Any]],
    bandwidth: float,
) -> list[dict[str, Any]]:
    """What the whole steps and kernels should reach, and what they reached."""
    by = {(s["scheme"], s["kv_cache"], s["what"], s["rows"]): s for s in steps}
    ours = {(k["kernel"], k["shape"]): k["seconds"] for k in kernels}
    theirs = {(p["kernel"], p["shape"]): p["seconds"] for p in peers}

    def speed(scheme: str, what: str, rows: int, kv_cache: str = "bf16") -> float:
        return float(by[scheme, kv_cache, what, rows]["tokens_per_second"])

    one = by["bf16", "bf16", "decode", 1]
    share = one["weight_bytes"] / one["seconds"] / bandwidth
    rows = [
        ("bf16 decode, 1 stream: share of the bandwidth", share, 0.75, True),
        ("W4A16 over bf16, 1 stream", speed("int4", "decode", 1) / speed("bf16", "decode", 1), 2.5, True),
        ("W4A16 over bf16, 64 streams", speed("int4", "decode", 64) / speed("bf16", "decode", 64), 1.0, True),
        (
            "FP8 over bf16, prefill of 8192",
            speed("fp8", "prefill", 8192) / speed("bf16", "prefill", 8192),
            1.6,
            True,
        ),
        ("FP8 over bf16, 1 stream", speed("fp8", "decode", 1) / speed("bf16", "decode", 1), 1.5, True),
        (
            "FP8 over bf16 KV, 64 streams",
            speed("fp8", "decode", 64, "fp8") / speed("fp8", "decode", 64),
            1.0,
            True,
        ),
    ]
    if one["gap_share"] is not None:
        rows.append(("gaps between kernels, 1 stream", one["gap_share"], 0.03, False))
    for kernel, peer in (("W4A16 zero-points", "torch _weight_int4pack_mm"), ("W8A8 int8", "torch _int_mm")):
        for (name, shape), seconds in ours.items():
            if name == kernel and (peer, shape) in theirs:
                rows.append((f"{kernel} over {peer}, {shape}", theirs[peer, shape] / seconds, 1.0, True))
    return [
        {
            "target": what,
            "reached": value,
            "wanted": wanted,
            "met": value >= wanted if at_least else value < wanted,
        }
        for what, value, wanted, at_least in rows
    ]


def print_report(report: dict[str, Any]) -> None:
    rows = [
        [
            each["kernel"],
            each["shape"],
            f"{1e6 * each['seconds']:.1f}",
            f"{each['bandwidth_share']:.0%}",
            f"{each['operations_per_second'] / 1e12:.1f}",
            "-" if each["error"] is None else f"{each['error']:.1e}",
            _verdict(each["right"]) if each["error"] is not None else "",
        ]
        for each in (*report["kernels"], *report["peers"])
    ]
    bandwidth = report["bandwidth_bytes_per_second"] / 1e12
    print(f"{report['device']}, PyTorch {report['torch']}: reads {bandwidth:.2f} TB/s")
    print_table(["kernel", "shape", "us", "of bandwidth", "TFLOP/s", "error", ""], rows)
    if report["steps"]:
        print_table(
            ["weights", "cache", "step", "rows", "ms", "tokens/s", "gaps"],
            [
                [
                    each["scheme"],
                    each["kv_cache"],
                    each["what"],
                    str(each["rows"]),
                    f"{1e3 * each['seconds']:.2f}",
                    f"{each['tokens_per_second']:.0f}",
                    "-" if each["gap_share"] is None else f"{each['gap_share']:.1%}",
                ]
                for each in report["steps"]
            ],
        )
        print_table(
            ["target", "reached", "wanted", ""],
            [
                [
                    each["target"],
                    f"{each['reached']:.2f}",
                    f"{each['wanted']:.2f}",
                    "met" if each["met"] else "MISSED",
                ]
                for each in report["targets"]
            ],
        )


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    for line in (header, ["-" * width for width in widths], *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _verdict(right: bool) -> str:
    return "right" if right else "WRONG"


if __name__ == "__main__":
    sys.exit(main())
