from __future__ import annotations

import math
import operator
import os

import pytest

from tightpack.planning.jobs import InTurn, Processes, open_jobs
from tightpack.planning.search import search


@pytest.fixture(scope="module")
def two():
    with Processes(2, 3) as jobs:
        yield jobs


@pytest.mark.parametrize("kind", ["in turn", "processes"])
def test_calls_get_the_common_argument_and_are_made_once(two, kind):
    jobs = InTurn(3) if kind == "in turn" else two
    for number in range(6):
        jobs.begin(("power", kind, number), operator.pow, number)
    jobs.begin(("power", kind, 2), operator.pow, 100)  # the key has come before
    assert [jobs.result(("power", kind, number)) for number in (5, 2, 0, 1, 4, 3)] == [125, 8, 0, 1, 64, 27]


def test_what_a_call_raises_is_raised(two):
    two.begin("root", math.factorial, 1.5)
    two.begin("sum", operator.add, 1)
    with pytest.raises(TypeError):
        two.result("root")
    assert two.result("sum") == 4


def test_idle_counts_what_could_begin_at_once():
    with open_jobs(2, 0.5) as jobs:
        assert jobs.idle == 2
        jobs.begin("a", operator.mul, 2)
        assert jobs.result("a") == 1.0
        assert jobs.idle == 2
    with open_jobs(1, 0.5) as alone:
        assert isinstance(alone, InTurn)
        assert alone.idle == 0


def test_a_process_that_is_gone_is_an_error_and_not_a_wait():
    with Processes(1, 3) as jobs:
        jobs.begin("end", os._exit)
        with pytest.raises(RuntimeError, match="ended from outside"):
            jobs.result("end")


def test_a_plan_is_the_same_in_any_number_of_processes(llama8b, new_load, new_deployments):
    load = new_load(rate=60.0, input_len=512)
    deployments = new_deployments(llama8b, ("l40s", "h100-sxm"), ("bf16", "fp8"), sizes=(1,))
    with open_jobs(2, load) as jobs:
        together = search(deployments, load, ("slo", "continuous"), most_tokens=20_000, jobs=jobs)
    assert together == search(deployments, load, ("slo", "continuous"), most_tokens=20_000)
    assert len(together.settled) > 1
