"""The capacity of every policy on segments of a trace: simulated, or for real on this machine.

    python benchmarks/capacities.py TRACE.csv OUT.json --simulate h100:llama-3.1-8b \\
        --quantization fp8 --kv-cache-dtype fp8
    python benchmarks/capacities.py TRACE.csv OUT.json --simulate smollm2.cost.json --max-model-len 2048
    python benchmarks/capacities.py TRACE.csv OUT.json --engine smollm2-135m --max-model-len 2048 \\
        --guesses simulated.json --segments 1 --minutes 25

Capacity is the largest rate at which 99 % of the requests with targets meet them, no request waits over 12 s
for its first token, and 90 % of the tokens of requests without targets are served. Results are written as
they come; the same command with --resume goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tightpack.benchmarking.capacity import Capacity, Probe, find_capacity, probe_rate, requests_for
from tightpack.benchmarking.comparison import warm_up
from tightpack.benchmarking.manifest import manifest
from tightpack.benchmarking.target import InProcess
from tightpack.benchmarking.trace import read_trace
from tightpack.benchmarking.workload import RequestShape, Workload, at_rate, build_workload, with_classes
from tightpack.cli.bench_simulate import read_simulation
from tightpack.engine_args import EngineArgs, resolve_limits
from tightpack.latency.service_level import ServiceLevel
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD, ServiceClass
from tightpack.serving_loop.loop import ServingLoop
from tightpack.simulated.ceiling import compute_ceiling
from tightpack.simulated.cost_model import CostModel
from tightpack.simulated.engine import make_simulated_loop
from tightpack.simulated.virtual_clock import VirtualClock

MIXES: Mapping[str, Mapping[ServiceClass, float]] = {
    "interactive": {INTERACTIVE: 1.0},
    "interactive + standard": {INTERACTIVE: 0.5, STANDARD: 0.5},
    "30 % long-prompt batch": {INTERACTIVE: 0.35, STANDARD: 0.35, BATCH: 0.3},
}
BUDGETS = (128, 256, 512, 1024, 2048, 4096)
VARIANTS = ("slo", *(f"chunked-prefill:{n}" for n in reversed(BUDGETS)), "continuous", "dynamic", "static")
# The context that the trace's service had; lengths are scaled down to a smaller one.
TRACE_CONTEXT = 8192
# Batch prompts are so many times as long as the trace's, up to this share of the context.
LONGER, LONGEST_SHARE = 4, 0.75
# Requests of a static or dynamic batch: a larger one would wait for its company longer than targets last.
BATCH_SIZE = 32
# Where the first search of a variant begins, as a share of the machine's ceiling.
FIRST_GUESS = {"static": 0.02, "dynamic": 0.1, "continuous": 0.5, "chunked-prefill:128": 0.2}
FIRST_GUESS |= {"chunked-prefill:256": 0.4, "chunked-prefill:512": 0.65}
USUAL_GUESS, STEP = 0.85, 1.1

# Requests a second, where a real machine's search begins without a simulation that says more.
USUAL_RATE = 2.0

LEVEL = ServiceLevel()


class TimeUpError(Exception):
    """No further rate is tried."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything but the policy: what is measured on which requests.

    requests: of a segment. probe_s: arrivals of a probe last so long at the least. seed: of the classes.
    """

    trace: str
    simulate: str | None
    engine: str | None
    quantization: str | None
    kv_cache_dtype: str
    max_model_len: int
    max_num_seqs: int
    requests: int
    segments: tuple[int, ...]
    probe_s: float
    resolution: float
    seed: int = 0

    @property
    def length_scale(self) -> float:
        return min(1.0, self.max_model_len / TRACE_CONTEXT)

    def shapes(self, mix: str, segment: int, count: int) -> list[RequestShape]:
        found = read_trace(
            Path(self.trace), count, skip=self.segments[segment], length_scale=self.length_scale
        )
        classed = with_classes(found, MIXES[mix], self.seed + segment)
        longest = int(self.max_model_len * LONGEST_SHARE)
        return [
            replace(one, input_len=min(one.input_len * LONGER, longest))
            if one.service_class is BATCH
            else one
            for one in classed
        ]

    def workload(self, mix: str, segment: int, rate: float, vocabulary: Sequence[int]) -> Workload:
        count = max(self.requests, requests_for(rate, self.probe_s))
        paced = at_rate(self.shapes(mix, segment, count), rate)
        return build_workload(mix, paced, vocabulary, self.max_model_len, self.seed, rate=rate)


class Machine:
    """Makes fresh serving loops, and knows its ceiling where there is a cost model."""

    def __init__(
        self, make_loop: Callable[..., ServingLoop], setting: Setting, cost: CostModel | None
    ) -> None:
        self._make_loop = make_loop
        self._setting = setting
        self._cost = cost

    def ceiling(self, shapes: Sequence[RequestShape]) -> float | None:
        """Requests a second beyond which no policy can be; None where nothing foretells it."""
        if self._cost is None:
            return None
        return compute_ceiling(self._cost, [(one.input_len, one.output_len) for one in shapes])

    def target(self, variant: str) -> tuple[str, InProcess]:
        policy, _, budget = variant.partition(":")
        seqs = BATCH_SIZE if policy in ("static", "dynamic") else self._setting.max_num_seqs
        limits: dict[str, int | None] = {"max_num_seqs": seqs}
        if budget:
            limits |= {"max_num_batched_tokens": int(budget), "max_num_seqs": min(seqs, int(budget))}
        return policy, InProcess(self._make_loop, {policy: limits})


@contextmanager
def opened(setting: Setting) -> Iterator[tuple[Machine, dict[str, Any]]]:
    """The machine, and what a report says of it."""
    if setting.simulate is not None:
        simulation = read_simulation(
            setting.simulate, setting.quantization, setting.kv_cache_dtype, setting.max_model_len
        )

        def simulated(policy: str, **limits: Any) -> ServingLoop:
            args = EngineArgs(policy=policy, enable_prefix_caching=False, max_queue=10**6, **limits)
            resolved = resolve_limits(
                args, simulation.max_model_len, simulation.num_blocks, simulation.device
            )
            return make_simulated_loop(simulation.cost_model, resolved, policy, VirtualClock())

        description = {"backend": "simulated", **simulation.cost_model.description}
        about = {"model": simulation.name, "label": simulation.label, "executor": description}
        yield Machine(simulated, setting, simulation.cost_model), {**about, "where": "simulated"}
        return
    from tightpack.engine import load_engine

    engine = load_engine(
        EngineArgs(
            model=str(setting.engine),
            quantization=setting.quantization,
            kv_cache_dtype=setting.kv_cache_dtype,
            max_model_len=setting.max_model_len,
            max_num_seqs=setting.max_num_seqs,
            max_queue=10**6,
            enable_prefix_caching=False,
        )
    )
    try:
        real = Machine(lambda policy, **limits: engine.with_policy(policy, **limits).loop, setting, None)
        about = {"model": engine.checkpoint.name, "label": "this machine", "where": "local"}
        yield real, {**about, "executor": engine.executor.description}
    finally:
        engine.executor.close()


def measure(
    machine: Machine,
    setting: Setting,
    mix: str,
    variant: str,
    segment: int,
    guess: float,
    until: float = math.inf,
) -> dict[str, Any]:
    """One cell: the capacity of a variant on a segment of a mix, and what it was like there."""
    policy, target = machine.target(variant)
    vocabulary = tuple(range(1000, 30_000))

    def probe(rate: float) -> Probe:
        if time.monotonic() > until:
            raise TimeUpError
        workload = setting.workload(mix, segment, rate, vocabulary)
        return probe_rate(target, policy, workload, rate, LEVEL)

    found = find_capacity(variant, probe, guess, resolution=setting.resolution, step=STEP)
    ceiling = machine.ceiling(setting.shapes(mix, segment, setting.requests))
    return {"mix": mix, "variant": variant, "segment": segment, "ceiling": ceiling, **_figures(found)}


def _figures(found: Capacity) -> dict[str, Any]:
    probes = [
        {
            "rate": round(one.rate, 4),
            "met": one.verdict.met,
            "attained": round(one.verdict.attained, 5),
            "reasons": list(one.verdict.reasons),
        }
        for one in found.probes
    ]
    cell = {"rate": round(found.rate, 4), "unmet_rate": found.unmet_rate, "probes": probes}
    if (best := found.best) is None:
        return cell
    gaps = best.run.latency.longest_gap_s.p99
    return cell | {
        "attained": round(best.verdict.attained, 5),
        "longest_ttft_s": best.verdict.longest_ttft_s,
        "longest_gap_p99_s": None if gaps is None else round(gaps, 5),
        "longest_prompts_attained": round(best.run.longest_prompts_attained, 5),
        "batch_tokens_served": round(best.verdict.batch_tokens_served, 5),
        "preemptions": best.run.preemptions,
        "busy": round(best.run.busy_s / best.run.duration_s, 4),
    }


def measure_segments(
    setting: Setting, mix: str, variant: str, todo: Sequence[int], keep: Callable[[dict[str, Any]], None]
) -> None:
    """Those of one variant; each search begins at the share of the ceiling that the last one reached."""
    with opened(setting) as (machine, _):
        share = FIRST_GUESS.get(variant, USUAL_GUESS)
        for segment in todo:
            ceiling = machine.ceiling(setting.shapes(mix, segment, setting.requests))
            cell = measure(machine, setting, mix, variant, segment, share * (ceiling or 1.0))
            share = cell["rate"] / (ceiling or 1.0) or share
            keep(cell)


def _measured_apart(setting: Setting, mix: str, variant: str, todo: Sequence[int]) -> list[dict[str, Any]]:
    """In a process of its own."""
    cells: list[dict[str, Any]] = []
    measure_segments(setting, mix, variant, todo, cells.append)
    return cells


class Results:
    """The file, rewritten with every cell."""

    def __init__(self, path: Path, head: Mapping[str, Any], *, resume: bool) -> None:
        self._path = path
        self.cells: list[dict[str, Any]] = []
        if resume and path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before["setting"] != json.loads(json.dumps(head["setting"])):
                raise ValueError(f"{path} was measured under another setting; name another file")
            self.cells = before["cells"]
        self._head = head

    def has(self, mix: str, variant: str, segment: int) -> bool:
        wanted = (mix, variant, segment)
        return any((one["mix"], one["variant"], one["segment"]) == wanted for one in self.cells)

    def add(self, cells: Sequence[dict[str, Any]]) -> None:
        self.cells += cells
        self.cells.sort(key=lambda one: (list(MIXES).index(one["mix"]), one["variant"], one["segment"]))
        text = json.dumps({**self._head, "cells": self.cells}, indent=1)
        self._path.write_text(text + "\n", encoding="utf-8")
        for one in cells:
            share = "" if not one["ceiling"] else f" ({one['rate'] / one['ceiling']:.0%} of the ceiling)"
            print(
                f"{one['mix']}, {one['variant']}, segment {one['segment']}: {one['rate']:.3g}/s{share}",
                flush=True,
            )


def run_simulated(
    setting: Setting, variants: Sequence[str], mixes: Sequence[str], results: Results, jobs: int
) -> None:
    tasks = [
        (mix, variant, todo)
        for variant in variants
        for mix in mixes
        if (todo := [n for n in range(len(setting.segments)) if not results.has(mix, variant, n)])
    ]
    if jobs == 1:
        for mix, variant, todo in tasks:
            measure_segments(setting, mix, variant, todo, lambda cell: results.add([cell]))
        return
    with ProcessPoolExecutor(jobs) as pool:
        for task in as_completed([pool.submit(_measured_apart, setting, *task) for task in tasks]):
            results.add(task.result())


def run_real(
    machine: Machine,
    setting: Setting,
    variants: Sequence[str],
    mixes: Sequence[str],
    results: Results,
    guesses: Sequence[Mapping[str, Any]],
    until: float,
) -> None:
    """One cell after the other, each beginning at what was foretold. TimeUpError ends it anywhere."""
    vocabulary = range(1000, 30_000)
    for segment in range(len(setting.segments)):
        for mix in mixes:
            for variant in variants:
                if results.has(mix, variant, segment):
                    continue
                policy, target = machine.target(variant)
                warm_up(target, policy, setting.workload(mix, segment, 1.0, vocabulary))
                guess = _predicted(guesses, mix, variant) or USUAL_RATE
                results.add([measure(machine, setting, mix, variant, segment, guess, until)])


def _predicted(cells: Sequence[Mapping[str, Any]], mix: str, variant: str) -> float | None:
    rates = [one["rate"] for one in cells if (one["mix"], one["variant"]) == (mix, variant) and one["rate"]]
    return math.fsum(rates) / len(rates) if rates else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, metavar="TRACE.csv")
    parser.add_argument("output", type=Path, metavar="OUT.json")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--simulate", metavar="DEVICE:MODEL|FILE", help="as of `tightpack bench`")
    where.add_argument("--engine", metavar="MODEL", help="for real, on this machine")
    parser.add_argument("--quantization")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--max-model-len", type=int, default=TRACE_CONTEXT)
    parser.add_argument(
        "--max-num-seqs", type=int, default=1024, help="default 1024, so that it binds nobody"
    )
    parser.add_argument("--variants", nargs="+", default=VARIANTS, metavar="POLICY[:BUDGET]")
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=list(MIXES), metavar="MIX")
    parser.add_argument("--requests", type=int, default=2000, help="of a segment (default 2000)")
    parser.add_argument("--segments", type=int, default=5, help="how many (default 5)")
    parser.add_argument(
        "--skip",
        type=int,
        default=4000,
        help="requests before the first segment: those that policies were chosen on (default 4000)",
    )
    parser.add_argument(
        "--apart", type=int, default=3000, help="requests from one segment's start to the next's"
    )
    parser.add_argument("--probe-seconds", type=float, default=36.0)
    parser.add_argument("--resolution", type=float, default=0.02)
    parser.add_argument("--jobs", type=int, default=1, help="simulations side by side")
    parser.add_argument("--guesses", type=Path, help="an earlier result that says where to begin")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="of a real run: try no further rate after so long"
    )
    parser.add_argument("--resume", action="store_true", help="keep what OUT.json holds, and add to it")
    options = parser.parse_args(arguments)
    setting = Setting(
        trace=str(options.trace),
        simulate=options.simulate,
        engine=options.engine,
        quantization=options.quantization,
        kv_cache_dtype=options.kv_cache_dtype,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        requests=options.requests,
        segments=tuple(options.skip + n * options.apart for n in range(options.segments)),
        probe_s=options.probe_seconds,
        resolution=options.resolution,
    )
    until = time.monotonic() + 60 * options.minutes
    described = {**asdict(setting), "trace": options.trace.name}
    guesses = json.loads(options.guesses.read_text(encoding="utf-8"))["cells"] if options.guesses else []
    with opened(setting) as (machine, about):
        head = {
            **manifest(**about, arguments=described),
            "setting": described,
            "service_level": asdict(LEVEL),
            "mixes": {name: {one.name: share for one, share in mix.items()} for name, mix in MIXES.items()},
        }
        results = Results(options.output, head, resume=options.resume)
        if setting.simulate is not None:
            run_simulated(setting, options.variants, options.mixes, results, options.jobs)
            return 0
        try:
            run_real(machine, setting, options.variants, options.mixes, results, guesses, until)
        except TimeUpError:
            print("the time is up; --resume goes on", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
