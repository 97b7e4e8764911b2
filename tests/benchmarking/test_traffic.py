from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from tightpack.benchmarking.traffic import DrawnTraffic, FixedTraffic, TraceTraffic
from tightpack.benchmarking.workload import (
    RequestShape,
    arrive_gamma,
    arrive_poisson,
    mean_rate,
    with_classes,
)
from tightpack.requests.service_class import BATCH, INTERACTIVE


def gaps(arrivals: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(arrivals)]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_rate_and_the_spread_asked_for(burstiness: float) -> None:
    found = gaps(arrive_gamma(20_000, 5.0, burstiness, seed=1))
    mean = statistics.fmean(found)
    assert mean == pytest.approx(0.2, rel=0.05)
    assert statistics.stdev(found) / mean == pytest.approx(burstiness**-0.5, rel=0.05)


def test_a_rate_scales_the_same_arrivals() -> None:
    slow, fast = (arrive_gamma(50, rate, 0.5, seed=3) for rate in (1.0, 8.0))
    assert fast == pytest.approx([time / 8 for time in slow])
    assert arrive_gamma(50, 2.0, 1.0, seed=3) == arrive_poisson(50, 2.0, seed=3)


def test_bad_rates_and_burstiness() -> None:
    with pytest.raises(ValueError, match="the rate must be above 0"):
        arrive_gamma(5, 0.0, 1.0, seed=0)
    with pytest.raises(ValueError, match="the burstiness must be above 0"):
        arrive_gamma(5, 1.0, -1.0, seed=0)


def test_classes_are_dealt_out_by_their_shares() -> None:
    shapes = [RequestShape(0.0, 1, 1)] * 10
    dealt = with_classes(shapes, {INTERACTIVE: 7, BATCH: 3}, seed=0)
    names = [shape.service_class.name for shape in dealt]
    assert (names.count("interactive"), names.count("batch")) == (7, 3)
    assert names != sorted(names, reverse=True)
    assert dealt == with_classes(shapes, {INTERACTIVE: 7, BATCH: 3}, seed=0)
    assert dealt != with_classes(shapes, {INTERACTIVE: 7, BATCH: 3}, seed=1)
    with pytest.raises(ValueError, match="needs a share above 0"):
        with_classes(shapes, {BATCH: 0.0}, seed=0)


def test_drawn_repeats_differ_and_come_again() -> None:
    traffic = DrawnTraffic(12, 64, 16, mixed=True, seed=4)
    assert traffic.shapes(2.0, 0) == traffic.shapes(2.0, 0)
    assert traffic.shapes(2.0, 0) != traffic.shapes(2.0, 1)
    # A repeat is what the next seed draws.
    assert traffic.shapes(2.0, 1) == DrawnTraffic(12, 64, 16, mixed=True, seed=5).shapes(2.0, 0)
    assert {shape.arrival_s for shape in traffic.shapes(None, 0)} == {0.0}
    assert traffic.describe() == "12 requests, mixed lengths (means about 64 in, 16 out)"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    rows = "".join(f"{i * i},{8 + i},{4 + i}\n" for i in range(9))
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    return path


def test_a_repeat_of_a_trace_is_its_next_segment(trace: Path) -> None:
    traffic = TraceTraffic(trace, count=3, skip=1)
    assert [shape.input_len for shape in traffic.shapes(None, 0)] == [9, 10, 11]
    assert [shape.input_len for shape in traffic.shapes(None, 1)] == [12, 13, 14]
    assert traffic.shapes(None, 1)[0].arrival_s == 0.0
    assert traffic.describe() == "requests 2 to 4 of t.csv"
    with pytest.raises(ValueError, match="ends within segment 3 of 3 requests"):
        traffic.shapes(None, 2)


def test_a_rate_scales_a_trace_to_that_mean(trace: Path) -> None:
    own = TraceTraffic(trace, count=5).shapes(None, 0)
    scaled = TraceTraffic(trace, count=5).shapes(10.0, 0)
    assert mean_rate(scaled) == pytest.approx(10.0)
    assert gaps([one.arrival_s for one in scaled]) == pytest.approx(
        [gap * mean_rate(own) / 10.0 for gap in gaps([one.arrival_s for one in own])]
    )


def test_requests_that_come_together_have_no_rate_to_scale() -> None:
    fixed = FixedTraffic("two", [RequestShape(0.0, 1, 1)] * 2)
    assert fixed.shapes(None, 3) == [RequestShape(0.0, 1, 1)] * 2
    with pytest.raises(ValueError, match="no rate to scale"):
        fixed.shapes(2.0, 0)
