"""A policy's own time: small beside the steps that it plans."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "scheduler_time.py"


@pytest.mark.parametrize("policy", ["chunked-prefill", "slo"])
def test_a_step_is_planned_in_a_small_part_of_its_time(policy: str) -> None:
    """64 running, 1,000 waiting. The aim is 5 % of a step of 3 ms, 150 us; four times that is for machines
    that are slow or busy. A walk over all who wait at every step would take over a millisecond."""
    spec = importlib.util.spec_from_file_location("scheduler_time", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.seconds_a_step(policy, 64, 1000, 300) < 600e-6
