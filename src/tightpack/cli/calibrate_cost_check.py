"""The check of `tightpack calibrate-cost`: one workload under every policy, for real and simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tightpack.benchmarking import workload
from tightpack.benchmarking.prediction import Prediction, check_predictions, predict
from tightpack.benchmarking.vocabulary import ordinary_token_ids
from tightpack.scheduling.registry import POLICY_NAMES
from tightpack.serving_loop.loop import ServingLoop
from tightpack.simulated.engine import make_simulated_loop
from tightpack.simulated.scaled import ScaledCostModel
from tightpack.simulated.virtual_clock import VirtualClock

if TYPE_CHECKING:
    from tightpack.engine import Engine
    from tightpack.simulated.fitted import FittedCostModel
    from tightpack.simulated.machine_speed import MachineSpeed

# The check's requests: mixed lengths about these. The p99 of 100 would be their second worst.
CHECKED_REQUESTS, _INPUT_LEN, _OUTPUT_LEN = 200, 64, 40
# TPOT is a mean over gaps: of too few, its p99 says where one prompt happened to fall.
_SHORTEST_OUTPUT = 16
# The rates of the check, as shares of what each policy serves in simulation when all requests come at once.
# Near its own capacity a queue turns an error of 1 % in the step time into one of 10 % in the wait.
_LOADS = (0.4, 0.7)


def check_policies(
    engine: Engine, fitted: FittedCostModel, speed: MachineSpeed, seed: int, status: Any
) -> list[Prediction]:
    """Mixed lengths, Poisson arrivals, at shares of what the simulation says each policy can take."""
    vocabulary = ordinary_token_ids(engine.checkpoint.tokenizer)
    lengths = [
        (input_len, max(output_len, _SHORTEST_OUTPUT))
        for input_len, output_len in workload.mixed_lengths(CHECKED_REQUESTS, _INPUT_LEN, _OUTPUT_LEN, seed)
    ]

    def build(arrivals: list[float]) -> workload.Workload:
        shapes = workload.shapes(lengths, arrivals)
        return workload.build_workload("check", shapes, vocabulary, engine.max_model_len, seed)

    def real(policy: str) -> ServingLoop:
        return engine.with_policy(policy).loop

    def simulated(policy: str, clock: VirtualClock, slowdown: float = 1.0) -> ServingLoop:
        cost_model = ScaledCostModel(fitted, slowdown)
        return make_simulated_loop(cost_model, engine.with_policy(policy).limits, policy, clock)

    at_once = build(workload.arrive_at_once(CHECKED_REQUESTS))

    def workloads(policy: str) -> list[tuple[float, workload.Workload]]:
        fastest = predict(simulated, policy, at_once).output_tokens_per_s
        most = fastest * CHECKED_REQUESTS / at_once.num_output_tokens
        rates = [float(f"{load * most:.3g}") for load in _LOADS]
        return [(rate, build(workload.arrive_poisson(CHECKED_REQUESTS, rate, seed))) for rate in rates]

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
