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
    from tightpack.engine import Engine
    from tightpack.simulated.fitted import FittedCostModel
    from tightpack.simulated.machine_speed import MachineSpeed

# A context of more would take a CPU many minutes to fill and to time.
_MAX_MODEL_LEN = 2048

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
    check_writable(output, "--output")
    check_writable(json_path)

    from rich.console import Console

    from tightpack.cli.calibrate_cost_check import CHECKED_REQUESTS, check_policies
    from tightpack.cli.calibrate_cost_tables import show_check, show_fit
    from tightpack.engine import load_engine
    from tightpack.engine_args import EngineArgs

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
                max_queue=max(1024, CHECKED_REQUESTS),
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
        show_fit(console, fitted)
        status.print(f"wrote {output}", highlight=False, soft_wrap=True)
        if check:
            predictions = check_policies(engine, fitted, speed, seed, status)
            show_check(console, predictions)
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


def _write(path: Path, fitted: FittedCostModel, predictions: list[Prediction]) -> None:
    report = {
        "what": "simulation on a fitted cost model against the real run",
        "manifest": dict(fitted.manifest),
        "held_out_steps": None if fitted.error is None else dataclasses.asdict(fitted.error),
        "predictions": [one.to_json() for one in predictions],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
