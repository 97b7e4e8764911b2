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


def check(real_s: float, predicted_s: float):
    clock = VirtualClock()
    return list(
        check_predictions(
            lambda policy: make_simulated_loop(Flat(real_s), LIMITS, policy, clock),
            lambda policy, own: make_simulated_loop(Flat(predicted_s), LIMITS, policy, own),
            ("static", "continuous"),
            [(4.0, WORKLOAD)],
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


def test_a_prediction_alone_takes_no_time():
    figures = predict(
        lambda policy, clock: make_simulated_loop(Flat(100.0), LIMITS, policy, clock), "continuous", WORKLOAD
    )
    assert figures.ttft_p50_s is not None
    assert figures.ttft_p50_s > 100
