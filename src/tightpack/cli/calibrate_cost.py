"""`tightpack calibrate-cost`: measure a model on this machine, so that simulations can stand in for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightpack.cli.options import (
    ActivationDtypeOption,
    DeviceOption,
    DtypeOption,
    ExecutorOption,
    KVCacheDtypeOption,
    ModelArgument,
    QuantizationOption,
    ThreadsOption,
    ThresholdOption,
    engine_options,
)
from tightpack.cli.result_file import check_writable
from tightpack.engine_args import DEFAULT_MODEL, LLM_INT8_THRESHOLD

if TYPE_CHECKING:
    from tightpack.benchmarking.prediction import Prediction
    from tightpack.llm import Engine
    from tightpack.simulated.fitted import FittedCostModel
    from tightpack.simulated.machine_speed import MachineSpeed

# A context of more would take a CPU many minutes to fill and to time.
_MAX_MODEL_LEN = 2048
# The check's requests: mixed lengths about these. The p99 of 100 would be their second worst.
_REQUESTS, _INPUT_LEN, _OUTPUT_LEN = 200, 64, 40
# TPOT is a mean over gaps: of too few, its p99 says where one prompt happened to fall.
_SHORTEST_OUTPUT = 16
# The rates of the check, as shares of what each policy serves in simulation when all requests come at once.
# Near its own capacity a queue turns an error of 1 % in the step time into one of 10 % in the wait.
_LOADS = (0.4, 0.7)
# What a prediction should keep to.
_AIM = 0.1

OutputOption = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where the fit goes.")]
MaxNumSeqsOption = Annotated[int, typer.Option(help="Requests in a step at the most.")]
MaxNumBatchedTokensOption = Annotated[
    int | None, typer.Option(help="Tokens in a step at the most.  [default: the context and a full batch]")
]
MaxModelLenOption = Annotated[int, typer.Option(help="Context; no simulation can go beyond.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Times that each step is run; the median counts.")]
SeedOption = Annotated[int, typer.Option(help="Of the mixed steps and of the check's workload.")]
CheckOption = Annotated[
    bool, typer.Option("--check/--no-check", help="Compare real and simulated runs under every policy.")
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="OUT.json", help="Write the check's figures to this file.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def calibrate_cost(
    model: ModelArgument = DEFAULT_MODEL,
    *,
    output: OutputOption,
    max_num_seqs: MaxNumSeqsOption = 8,
    max_num_batched_tokens: MaxNumBatchedTokensOption = None,
    max_model_len: MaxModelLenOption = _MAX_MODEL_LEN,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    executor: ExecutorOption = "auto",
    activation_dtype: ActivationDtypeOption = "auto",
    quantization: QuantizationOption = None,
    llm_int8_threshold: ThresholdOption = LLM_INT8_THRESHOLD,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    num_threads: ThreadsOption = None,
    rounds: RoundsOption = 5,
    seed: SeedOption = 0,
    check: CheckOption = True,
    json_path: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time designed steps on this machine, fit a cost model for simulations, and check what it predicts.

    Keep the machine quiet meanwhile: what else runs is measured too. The check plays one workload at two
    rates under every policy, for real and simulated, and prints both. A few steps are timed around each run,
    and the prediction is for a machine as fast as it was then.

    Example: `tightpack calibrate-cost smollm2-135m -o smollm2.cost.json`
    """
    given = locals()
    arguments = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in given.items()
        if name != "quiet"
    }
    if json_path is not None and not check:
        raise ValueError("--json holds the check's figures; drop --no-check")
    check_writable(output)
    check_writable(json_path)

    from rich.console import Console

    from tightpack.engine_args import EngineArgs
    from tightpack.llm import load_engine

    status = Console(stderr=True, quiet=quiet)
    with status.status(f"loading {model}"):
        engine = load_engine(
            EngineArgs(
                **engine_options(given),
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                # Whole prompts, unless the budget is below the context: then they are cut.
                policy="chunked-prefill"
                if max_num_batched_tokens is not None and max_num_batched_tokens < max_model_len
                else "continuous",
                max_queue=max(1024, _REQUESTS),
                enable_prefix_caching=False,
            )
        )
    console = Console(highlight=False)
    try:
        speed = _machine_speed(engine)
        speed.calibrated()
        fitted = _fit(engine, rounds, seed, arguments, status)
        speed.calibrated()
        output.write_text(fitted.to_json(), encoding="utf-8")
        _show_fit(console, fitted)
        status.print(f"wrote {output}", highlight=False, soft_wrap=True)
        if check:
            predictions = _check(engine, fitted, speed, seed, status)
            _show_check(console, predictions)
            if json_path is not None:
                _write(json_path, fitted, predictions)
                status.print(f"wrote {json_path}", highlight=False, soft_wrap=True)
    finally:
        engine.executor.close()


def _machine_speed(engine: Engine) -> MachineSpeed:
    from tightpack.simulated.designed_steps import Rows, StepTimer
    from tightpack.simulated.machine_speed import MachineSpeed

    rows, budget = Rows.of(engine.limits), engine.limits.max_num_batched_tokens
    timer = StepTimer(engine.executor, rows, engine.checkpoint.spec.vocab_size, budget)
    for _ in timer.fill():
        pass
    return MachineSpeed(timer, rows, budget)


def _fit(
    engine: Engine, rounds: int, seed: int, arguments: Mapping[str, Any], status: Any
) -> FittedCostModel:
    from tightpack.benchmarking.machine import describe_machine
    from tightpack.simulated.calibrate import Calibration, calibrate

    manifest = {"model": engine.checkpoint.name, "machine": describe_machine(), "arguments": arguments}
    with status.status("timing steps") as shown:
        return calibrate(
            engine.executor,
            engine.checkpoint.spec,
            engine.limits,
            Calibration(rounds=rounds, seed=seed),
            manifest,
            lambda done, total: shown.update(f"timing step {done} of {total}"),
        )


def _check(
    engine: Engine, fitted: FittedCostModel, speed: MachineSpeed, seed: int, status: Any
) -> list[Prediction]:
    """Mixed lengths, Poisson arrivals, at shares of what the simulation says each policy can take."""
    from tightpack.benchmarking import workload
    from tightpack.benchmarking.prediction import check_predictions, predict
    from tightpack.benchmarking.vocabulary import ordinary_token_ids
    from tightpack.scheduling.registry import POLICY_NAMES
    from tightpack.serving_loop.loop import ServingLoop
    from tightpack.simulated.engine import make_simulated_loop
    from tightpack.simulated.scaled import ScaledCostModel
    from tightpack.simulated.virtual_clock import VirtualClock

    vocabulary = ordinary_token_ids(engine.checkpoint.tokenizer)
    lengths = [
        (input_len, max(output_len, _SHORTEST_OUTPUT))
        for input_len, output_len in workload.mixed_lengths(_REQUESTS, _INPUT_LEN, _OUTPUT_LEN, seed)
    ]

    def build(arrivals: list[float]) -> workload.Workload:
        shapes = workload.shapes(lengths, arrivals)
        return workload.build_workload("check", shapes, vocabulary, engine.max_model_len, seed)

    def real(policy: str) -> ServingLoop:
        return engine.with_policy(policy).loop

    def simulated(policy: str, clock: VirtualClock, slowdown: float = 1.0) -> ServingLoop:
        cost_model = ScaledCostModel(fitted, slowdown)
        return make_simulated_loop(cost_model, engine.with_policy(policy).limits, policy, clock)

    at_once = build(workload.arrive_at_once(_REQUESTS))

    def workloads(policy: str) -> list[tuple[float, workload.Workload]]:
        fastest = predict(simulated, policy, at_once).output_tokens_per_s
        most = fastest * _REQUESTS / at_once.num_output_tokens
        rates = [float(f"{load * most:.3g}") for load in _LOADS]
        return [(rate, build(workload.arrive_poisson(_REQUESTS, rate, seed))) for rate in rates]

    checked = {name: workloads(name) for name in POLICY_NAMES if _fits(engine, name)}
    total = len(checked) * len(_LOADS)
    predictions = []
    with status.status("checking") as shown:
        for one in check_predictions(real, simulated, checked, speed.slowdown):
            predictions.append(one)
            shown.update(f"checking: {len(predictions)} of {total} runs")
    return predictions


def _fits(engine: Engine, policy: str) -> bool:
    """Whether the policy can run within the limits that were measured."""
    try:
        engine.with_policy(policy)
    except ValueError:  # whole prompts and a budget below the context
        return False
    return True


def _show_fit(console: Any, fitted: FittedCostModel) -> None:
    from rich import box
    from rich.table import Table

    manifest, error = fitted.manifest, fitted.error
    where = ", ".join(f"{key} {value}" for key, value in manifest["executor"].items())
    console.print(f"[bold]{manifest['model']}[/bold]: {where}")
    table = Table(box=box.ROUNDED, title="Step time by tokens in the step, ms", title_style="bold")
    for count in fitted.token_counts:
        table.add_column(str(count), justify="right")
    table.add_row(*(f"{seconds * 1e3:.1f}" for seconds in fitted.step_s))
    console.print(table)
    console.print(
        f"and {fitted.sampling_s * 1e3:.2f} ms to sample at all, {fitted.sample_s * 1e3:.2f} ms a row; "
        f"{fitted.decoding_s * 1e3:.2f} ms to decode at all, {fitted.decode_s * 1e3:.2f} ms a decode; "
        f"{fitted.prompt_s * 1e3:.2f} ms a prompt chunk"
    )
    for cost in fitted.attention:
        window = "" if cost.window is None else f" (window {cost.window})"
        console.print(
            f"attention{window}: {cost.decode_position_s * 1e6:.2f} us a position that a decode reads, "
            f"{cost.own_pair_s * 1e9:.0f} ns a pair within a prompt chunk, "
            f"{cost.cached_pair_s * 1e9:.0f} ns a pair with what was cached"
        )
    if error is not None:
        console.print(
            f"{error.steps} steps that were not fitted: off by {error.mean:.1%} on average, "
            f"{error.p90:.1%} at the 90th percentile, their sum by {error.total:+.1%}"
        )


def _show_check(console: Any, predictions: list[Prediction]) -> None:
    from rich import box
    from rich.table import Table

    # Title, factor and decimals of each figure.
    names = {
        "output_tokens_per_s": ("output\ntokens/s", 1.0, 0),
        "ttft_p50_s": ("TTFT p50\ns", 1.0, 2),
        "ttft_p99_s": ("TTFT p99\ns", 1.0, 2),
        "tpot_p50_s": ("TPOT p50\nms", 1e3, 1),
        "tpot_p99_s": ("TPOT p99\nms", 1e3, 1),
    }
    title = "Predicted / measured, and the error"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_style="bold")
    table.add_column("policy", no_wrap=True)
    for column in ("rate\n1/s", "slower", *(column for column, *_ in names.values())):
        table.add_column(column, justify="right", no_wrap=True, vertical="top")
    for one in predictions:
        cells = []
        errors = one.errors()
        for name, (_, factor, decimals) in names.items():
            if name not in errors:
                cells.append("–")
                continue
            both = (getattr(figures, name) * factor for figures in (one.predicted, one.measured))
            shown = "/".join(f"{value:.{decimals}f}" for value in both)
            cells.append(f"{shown}\n{errors[name]:+.0%}")
        table.add_row(one.policy, f"{one.rate:.3g}", f"{one.slowdown - 1:+.0%}", *cells)
    console.print(table)
    off = [abs(error) for one in predictions for error in one.errors().values()]
    unadjusted = [
        abs(error)
        for one in predictions
        for error in dataclasses.replace(one, predicted=one.unadjusted).errors().values()
    ]
    console.print(
        f"slower: the machine's steps around the run against its calibration, which the prediction allows"
        f" for. {sum(error <= _AIM for error in off)} of {len(off)} figures within {_AIM:.0%}, the"
        f" largest error {max(off):.0%}; without that allowance"
        f" {sum(error <= _AIM for error in unadjusted)} within {_AIM:.0%}."
    )


def _write(path: Path, fitted: FittedCostModel, predictions: list[Prediction]) -> None:
    report = {
        "what": "simulation on a fitted cost model against the real run",
        "manifest": dict(fitted.manifest),
        "held_out_steps": None if fitted.error is None else dataclasses.asdict(fitted.error),
        "predictions": [one.to_json() for one in predictions],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
