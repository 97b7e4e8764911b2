from __future__ import annotations

import pytest

from tightpack.latency.miss import MissCause, miss_cause
from tightpack.latency.request_latency import RequestLatency
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD

IN_TIME = (0.4, 0.44, 0.48)
LATE = (0.9, 0.94)
SLOW = (0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    ("token_times", "scheduled", "in_prefill", "in_decode", "cause"),
    [
        (IN_TIME, 0.1, False, False, None),
        (IN_TIME, 0.1, True, True, None),
        (LATE, 0.6, False, False, MissCause.QUEUE),
        (LATE, 0.1, False, False, MissCause.PREFILL),
        (LATE, 0.6, True, False, MissCause.PREEMPTION),
        (SLOW, 0.1, False, False, MissCause.DECODE),
        (SLOW, 0.1, False, True, MissCause.PREEMPTION),
        (SLOW, 0.1, True, False, MissCause.DECODE),
        ((), None, False, False, MissCause.QUEUE),
        ((), 0.1, False, False, MissCause.PREFILL),
    ],
)
def test_the_first_miss_has_one_cause(token_times, scheduled, in_prefill, in_decode, cause):
    latency = RequestLatency.of(0.0, token_times)
    found = miss_cause(
        latency,
        INTERACTIVE,
        first_scheduled_time=scheduled,
        preempted_in_prefill=in_prefill,
        preempted_in_decode=in_decode,
    )
    assert found is cause


@pytest.mark.parametrize("target", [STANDARD, BATCH])
def test_what_misses_one_class_may_meet_another(target):
    latency = RequestLatency.of(0.0, SLOW)
    assert (
        miss_cause(
            latency,
            target,
            first_scheduled_time=0.1,
            preempted_in_prefill=False,
            preempted_in_decode=False,
        )
        is None
    )
