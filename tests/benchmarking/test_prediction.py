from __future__ import annotations

import pytest

from tightpack.benchmarking.prediction import check_predictions, predict
from tightpack.benchmarking.workload import arrive_poisson, build_workload, fixed_lengths, shapes
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.simulated.engine import make_simulated_loop
from tightpack.simulated.virtual_clock import VirtualClock

LIMITS = SchedulerLimits(
    max_num_seqs=4, max_num_batched_tokens=132, max_model_len=128, block_size=16, num_blocks=64
)
WORKLOAD = build_workload(
    "w", shapes(fixed_lengths(12, 32, 16), arrive_poisson(12, 4.0, 0)), range(500), 128, 0
)


class Flat:
    """Every step takes the same."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.description = {"cost_model": "flat"}

    def step_seconds(self, plan) -> float:
        return self.seconds


def simulated(seconds: float):
    return lambda policy, clock, slowdown=1.0: make_simulated_loop(
        Flat(seconds * slowdown), LIMITS, policy, clock
    )


def check(real_s: float, predicted_s: float, **more):
    clock = VirtualClock()
    workloads = {name: [(4.0, WORKLOAD)] for name in ("static", "continuous")}
    return list(
        check_predictions(
            lambda policy: make_simulated_loop(Flat(real_s), LIMITS, policy, clock),
            simulated(predicted_s),
            workloads,
            **more,
        )
    )


def test_the_right_cost_model_foretells_the_run():
    static, continuous = check(0.02, 0.02)
    assert (static.policy, continuous.policy, continuous.rate) == ("static", "continuous", 4.0)
    # Another start of the clock rounds the times otherwise.
    assert all(abs(error) < 1e-9 for error in (*static.errors().values(), *continuous.errors().values()))
    assert "tpot_p50_s" in continuous.errors()
    assert "tpot_p50_s" not in static.errors()  # its tokens come all at once


def test_a_cost_model_that_is_too_slow_shows_where():
    _, continuous = check(0.02, 0.03)
    errors = continuous.errors()
    assert errors["tpot_p50_s"] == pytest.approx(0.5, abs=0.01)
    assert errors["ttft_p50_s"] > 0.2
    stored = continuous.to_json()
    assert stored["errors"] == errors
    assert stored["measured"]["tpot_p50_s"] == pytest.approx(0.02)


def test_a_machine_that_became_slower_is_allowed_for():
    speeds = iter((1.4, 1.6, 1.0, 1.0))
    static, continuous = check(0.03, 0.02, slowdown=lambda: next(speeds))
    assert static.slowdown == pytest.approx(1.5)
    assert all(abs(error) < 1e-9 for error in static.errors().values())
    assert static.unadjusted.ttft_p50_s < static.predicted.ttft_p50_s
    # As fast as at calibration, but off all the same: that is the model's error.
    assert continuous.slowdown == 1
    assert continuous.errors()["tpot_p50_s"] == pytest.approx(-1 / 3, abs=0.01)
    assert continuous.unadjusted == continuous.predicted


def test_a_prediction_alone_takes_no_time():
    figures = predict(simulated(100.0), "continuous", WORKLOAD)
    assert figures.ttft_p50_s is not None
    assert figures.ttft_p50_s > 100
