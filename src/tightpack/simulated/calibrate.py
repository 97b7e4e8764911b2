"""From a real executor to a cost model: time the designed steps, fit, and test on steps it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tightpack.architectures.model_spec import ModelSpec
from tightpack.requests.arguments import strict_keywords
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.serving_loop.executor import Executor
from tightpack.simulated.designed_steps import Rows, StepTimer, grid_steps, random_steps
from tightpack.simulated.fitted import FitError, FittedCostModel, fit
from tightpack.simulated.loop_time import measure_loop
from tightpack.simulated.step_work import StepWork


@strict_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """rounds: times that each step is run. mixed_steps, held_out_steps: random steps beside the grid, to fit
    and to test. seed: of both."""

    rounds: int = 5
    mixed_steps: int = 60
    held_out_steps: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "mixed_steps", "held_out_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def calibrate(
    executor: Executor,
    spec: ModelSpec,
    limits: SchedulerLimits,
    calibration: Calibration,
    manifest: Mapping[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FittedCostModel:
    """Fit the step time of an idle executor within `limits`; its KV cache is overwritten.

    manifest: kept in the model, beside the executor's description and the limits.
    progress: called with the steps done and the steps in all.
    """
    rows, budget = Rows.of(limits), limits.max_num_batched_tokens
    timer = StepTimer(executor, rows, spec.vocab_size, budget)
    learned = grid_steps(rows, budget)
    learned += random_steps(rows, budget, calibration.mixed_steps, calibration.seed)
    held_out = random_steps(rows, budget, calibration.held_out_steps, calibration.seed + 1)
    fillings = rows.count * -(-rows.positions // budget)
    total = fillings + calibration.rounds * (len(learned) + len(held_out))
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    for _ in timer.fill():
        advance()
    steps = learned + held_out
    seconds = timer.medians(steps, calibration.rounds, advance)
    windows = list(dict.fromkeys(layer.window for layer in spec.layers))
    work = [[StepWork.of(timer.plan(step).chunks, window) for window in windows] for step in steps]
    described = {
        **manifest,
        "executor": dict(executor.description),
        "limits": {
            "max_num_seqs": rows.count,
            "max_num_batched_tokens": budget,
            "positions": rows.positions,
            "block_size": limits.block_size,
            "num_blocks": limits.num_blocks,
        },
        "calibration": {"steps": len(learned), "rounds": calibration.rounds, "seed": calibration.seed},
    }
    model = fit(work[: len(learned)], seconds[: len(learned)], windows, described)
    unseen, taken = work[len(learned) :], seconds[len(learned) :]
    return replace(
        model,
        loop=measure_loop(limits),
        error=FitError.of([model.executor_seconds(one) for one in unseen], taken),
    )
