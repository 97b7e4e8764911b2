from __future__ import annotations

import pytest

from tightpack.latency.request_latency import RequestLatency
from tightpack.latency.summary import duration, goodput, summarize, summarize_by_class, throughput
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD

QUICK = RequestLatency(0.0, (0.25, 0.25 + 1 / 32))
SLOW = RequestLatency(1.0, (4.0, 4.5, 5.0))
SHORT = RequestLatency(2.0, (3.0,))
LOST = RequestLatency(0.5, ())


def test_each_latency_counts_the_requests_that_have_it() -> None:
    summary = summarize([QUICK, SLOW, SHORT, LOST])
    assert summary.num_requests == 4
    assert summary.num_output_tokens == 6
    assert summary.ttft_s.p50 == 1.0  # of 0.25, 1, 3
    assert summary.ttft_s.max == 3.0
    assert summary.tpot_s.mean == (1 / 32 + 0.5) / 2
    assert summary.itl_s.mean == (1 / 32 + 0.5 + 0.5) / 3  # every gap counts once
    assert summary.longest_gap_s.max == 0.5
    assert summary.longest_gap_s.mean == (1 / 32 + 0.5) / 2  # one a request
    assert summary.e2e_s.max == 4.0


def test_duration_runs_from_the_first_arrival_to_the_last_token() -> None:
    assert duration([SLOW, SHORT]) == 4.0
    assert duration([SLOW, LOST]) == 4.5
    assert duration([LOST]) == duration([]) == 0.0


def test_goodput_counts_who_met_every_target() -> None:
    everyone = [QUICK, SLOW, SHORT, LOST]
    assert goodput(everyone, [INTERACTIVE] * 4, 2.0) == 0.5
    assert goodput(everyone, [STANDARD] * 4, 2.0) == 1.0
    assert goodput(everyone, [BATCH] * 4, 2.0) == 1.5
    assert goodput(everyone, [INTERACTIVE, BATCH, INTERACTIVE, BATCH], 2.0) == 1.0
    assert goodput([LOST], [BATCH], 0.0) == 0.0


def test_rates_need_a_duration_and_one_class_a_request() -> None:
    assert throughput(10, 4.0) == 2.5
    assert throughput(0, 0.0) == 0.0
    with pytest.raises(ValueError, match="above 0 seconds"):
        throughput(10, 0.0)
    with pytest.raises(ValueError, match="2 requests need a service class each, not 1"):
        goodput([QUICK, SLOW], [BATCH], 1.0)


def test_classes_are_summarized_apart() -> None:
    interactive, batch = summarize_by_class(
        [QUICK, SLOW, LOST, SHORT], [INTERACTIVE, BATCH, INTERACTIVE, INTERACTIVE], 2.0
    )
    assert (interactive.service_class, batch.service_class) == (INTERACTIVE, BATCH)
    assert (interactive.num_requests, batch.num_requests) == (3, 1)
    assert interactive.attained == 1 / 3
    assert (interactive.goodput_per_s, batch.goodput_per_s) == (0.5, 0.5)
    assert interactive.latency.num_requests == 2  # those with tokens
    assert batch.latency.ttft_s.p50 == 3.0
