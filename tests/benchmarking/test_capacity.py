from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tightpack.benchmarking.capacity import Probe, capacity_to_json, find_capacity, probe_rate, requests_for
from tightpack.benchmarking.target import InProcess
from tightpack.benchmarking.traffic import DrawnTraffic
from tightpack.benchmarking.workload import RequestShape, build_workload
from tightpack.latency.service_level import ServiceLevel, Verdict
from tightpack.requests.service_class import ServiceClass

PATIENT = ServiceClass("patient", ttft_s=4.0)


def search(limit: float, start: float, **options: float):
    """A system that meets its level up to `limit`; the rates tried, and what was found."""

    def probe(rate: float) -> Probe:
        reasons = () if rate <= limit else ("too fast",)
        return Probe(rate, Verdict(1.0, 0.0, 1.0, reasons), run=None, given_up=False)

    return find_capacity("any", probe, start, **options)


@pytest.mark.parametrize("start", [0.1, 1.0, 7.3, 40.0])
@pytest.mark.parametrize("limit", [0.37, 7.3, 300.0])
def test_finds_the_limit_from_wherever_it_starts(limit: float, start: float) -> None:
    found = search(limit, start)
    assert found.unmet_rate is not None
    assert found.rate <= limit < found.unmet_rate <= found.rate * 1.05
    assert found.best is not None
    assert found.best.rate == found.rate
    rates = [probe.rate for probe in found.probes]
    assert rates[0] == start
    assert len(rates) == len(set(rates)) <= 20


def test_doubles_then_bisects() -> None:
    found = search(5.0, 1.0, resolution=0.1)
    assert [probe.rate for probe in found.probes] == [1.0, 2.0, 4.0, 8.0, 6.0, 5.0, 5.5]
    assert (found.rate, found.unmet_rate) == (5.0, 5.5)


def test_a_good_guess_takes_small_steps_at_first() -> None:
    near = search(5.0, 4.9, resolution=0.05, step=1.1)
    assert len(near.probes) == 3
    far = search(5.0, 1.0, resolution=0.5, step=1.1)
    assert [round(probe.rate, 2) for probe in far.probes] == [1.0, 1.1, 1.33, 1.95, 3.9, 7.79, 5.85]
    with pytest.raises(ValueError, match="step of a search lies above 1"):
        search(5.0, 1.0, step=1.0)


def test_a_system_that_never_meets_its_level_has_no_capacity() -> None:
    found = search(0.0, 1.0)
    assert (found.rate, found.best) == (0.0, None)


def test_a_system_without_a_limit() -> None:
    found = search(float("inf"), 1.0)
    assert found.rate == 2.0**12
    assert found.unmet_rate is None


def test_a_rate_is_kept_up_for_a_while() -> None:
    """By a burst of a few requests any rate would be met."""
    assert [requests_for(rate, 30.0) for rate in (0.01, 1.0, 50.0)] == [2, 31, 1501]
    traffic = DrawnTraffic(8, 16, 4)
    shapes = traffic.shapes(50.0, 0, requests_for(50.0, 30.0))
    assert len(shapes) == 1501
    assert shapes[-1].arrival_s == pytest.approx(30.0, rel=0.1)
    assert len(traffic.shapes(50.0, 0)) == 8


def test_bad_searches() -> None:
    with pytest.raises(ValueError, match="starts above 0"):
        search(1.0, 0.0)
    with pytest.raises(ValueError, match="resolution"):
        search(1.0, 1.0, resolution=1.0)


@pytest.fixture
def probe(make_loop):
    """A request takes a step of one second alone; two at the most share a step."""

    def run(rate: float, level: ServiceLevel, count: int = 60) -> Probe:
        shapes = [RequestShape(i / rate, 1, 1, PATIENT) for i in range(count)]
        workload = build_workload("steady", shapes, range(9), 64, 0, rate=rate)
        target = InProcess(make_loop, {"continuous": {"max_queue": 1000}})
        return probe_rate(target, "continuous", workload, rate, level)

    return run


def test_the_capacity_of_a_loop_is_what_its_steps_allow(probe) -> None:
    level = ServiceLevel(attainment=0.9, max_ttft_s=6.0)
    found = find_capacity("continuous", lambda rate: probe(rate, level, 200), 0.5)
    assert found.rate == pytest.approx(2.0, rel=0.1)  # two requests a second


def test_a_hopeless_probe_is_given_up(probe) -> None:
    one = probe(10.0, ServiceLevel(attainment=0.9))
    assert one.given_up
    assert not one.verdict.met
    assert one.verdict.reasons == ("more requests missed their targets than may",)
    # Of what ended: 4 s of waiting are 8 requests, and 7 of 60 may miss.
    assert one.run.completed < 25
    one = probe(10.0, ServiceLevel(attainment=0.1, max_ttft_s=5.0))
    assert one.verdict.reasons == ("a request waited over 5 s for its first token",)


def test_the_report_has_every_probe_and_a_run_at_capacity(probe) -> None:
    level = ServiceLevel(attainment=0.9, max_ttft_s=6.0)
    repeats = [
        find_capacity("continuous", lambda rate: probe(rate, level, 100), start) for start in (1.0, 1.1)
    ]
    workload = build_workload("w", [RequestShape(0.0, 1, 1)], range(9), 64, 0)
    report = json.loads(json.dumps(capacity_to_json(level, 0.05, 50.0, workload, [repeats])))
    [policy] = report["capacity"]["policies"]
    assert report["capacity"]["service_level"]["attainment"] == 0.9
    assert policy["rate"] == min(one.rate for one in repeats)
    assert [len(one["probes"]) for one in policy["repeats"]] == [len(one.probes) for one in repeats]
    assert policy["interval"]["low"] <= policy["interval"]["mean"] <= policy["interval"]["high"]
    for one in policy["repeats"]:
        assert {probe["met"] for probe in one["probes"]} == {True, False}
    [run] = report["runs"]
    assert run["rate"] == policy["rate"]
    assert run["attained"] >= 0.9
    never = replace(repeats[0], rate=0.0)
    assert capacity_to_json(level, 0.05, 50.0, workload, [[never]])["runs"] == []
