"""Each latency against values worked out by hand."""

from __future__ import annotations

import pytest

from tightpack.latency.request_latency import RequestLatency
from tightpack.requests.outputs import RequestTimings
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD, ServiceClass


def test_the_words_as_defined() -> None:
    one = RequestLatency.of(10.0, [10.5, 10.75, 11.5])
    assert one.ttft_s == 0.5
    assert one.tpot_s == 0.5  # (11.5 - 10.5) / 2
    assert one.itl_s == (0.25, 0.75)
    assert one.e2e_s == 1.5
    assert one.num_output_tokens == 3


def test_one_token_has_no_time_per_output_token() -> None:
    one = RequestLatency.of(0.0, [2.0])
    assert (one.ttft_s, one.tpot_s, one.itl_s, one.e2e_s) == (2.0, None, (), 2.0)


def test_no_token_has_no_latency() -> None:
    none = RequestLatency.of(0.0, [])
    assert (none.ttft_s, none.tpot_s, none.itl_s, none.e2e_s) == (None, None, (), None)
    assert not none.meets(BATCH)


def test_tokens_published_together_have_gaps_of_zero() -> None:
    together = RequestLatency.of(0.0, [4.0, 4.0, 4.0])
    assert together.ttft_s == together.e2e_s == 4.0
    assert together.tpot_s == 0.0
    assert together.itl_s == (0.0, 0.0)


def test_from_the_timings_of_a_request() -> None:
    timings = RequestTimings(1.0, first_scheduled_time=1.5, finished_time=9.0, token_times=[2.0, 3.0])
    assert RequestLatency.from_timings(timings) == RequestLatency(1.0, (2.0, 3.0))


@pytest.mark.parametrize(
    ("token_times", "target", "met"),
    [
        ([0.5, 0.75], ServiceClass("equal", ttft_s=0.5, tpot_s=0.25), True),
        ([0.5, 0.54], INTERACTIVE, True),
        ([0.51, 0.55], INTERACTIVE, False),
        ([0.4, 0.5], INTERACTIVE, False),  # TPOT 0.1
        ([0.4, 0.5], STANDARD, True),
        ([2.5], STANDARD, False),
        ([1.5], STANDARD, True),  # no TPOT to miss
        ([100.0, 200.0], BATCH, True),
        ([3.0, 3.01], ServiceClass("only tpot", tpot_s=0.05), True),
        ([0.1, 9.0], ServiceClass("only ttft", ttft_s=0.2), True),
    ],
)
def test_targets(token_times: list[float], target: ServiceClass, met: bool) -> None:
    assert RequestLatency.of(0.0, token_times).meets(target) is met


@pytest.mark.parametrize("token_times", [[0.5], [2.0, 1.5]])
def test_time_does_not_run_backwards(token_times: list[float]) -> None:
    with pytest.raises(ValueError, match="comes before"):
        RequestLatency.of(1.0, token_times)
