from __future__ import annotations

import pytest

from tightpack.latency.request_latency import RequestLatency
from tightpack.latency.service_level import ServedRequest, ServiceLevel, batch_tokens_served, judge
from tightpack.requests.service_class import BATCH, INTERACTIVE, ServiceClass

LEVEL = ServiceLevel(attainment=0.9, max_ttft_s=5.0, batch_tokens=0.75)


def chat(ttft: float | None, arrival: float = 0.0) -> ServedRequest:
    times = () if ttft is None else (arrival + ttft,)
    return ServedRequest(RequestLatency(arrival, times), INTERACTIVE, 10, 1)


def batch(*times: float, arrival: float = 0.0, asked: int = 2) -> ServedRequest:
    return ServedRequest(RequestLatency(arrival, times), BATCH, 8, asked)


def test_a_share_may_miss() -> None:
    assert judge([chat(0.1)] * 9 + [chat(2.0)], LEVEL).met
    verdict = judge([chat(0.1)] * 8 + [chat(2.0)] * 2, LEVEL)
    assert not verdict.met
    assert verdict.attained == 0.8
    assert verdict.reasons == ("80.0% of requests met their targets, under 0.9",)


def test_shares_are_decimals() -> None:
    level = ServiceLevel()
    assert [level.allowed_misses(n) for n in (99, 100, 199, 200, 1000)] == [0, 1, 1, 2, 10]


def test_nobody_waits_too_long_of_whatever_class() -> None:
    verdict = judge([chat(0.1), batch(6.0, 6.5)], LEVEL)
    assert verdict.attained == 1.0
    assert verdict.longest_ttft_s == 6.0
    assert any("a request waited 6.0 s for its first token, over 5 s" in reason for reason in verdict.reasons)


def test_a_refused_request_is_a_miss_and_has_waited_for_ever() -> None:
    verdict = judge([chat(0.1)] * 19 + [chat(None)], LEVEL)
    assert verdict.attained == 0.95
    assert verdict.longest_ttft_s is None
    assert verdict.reasons == ("a request got no token",)


def test_batch_tokens_count_until_some_time_after_the_last_arrival() -> None:
    requests = [batch(1.0, 8.0), batch(3.0, 4.0), chat(0.1, arrival=2.0)]
    # Until 7 s: a prompt of 8 and 1 token, a prompt of 8 and 2 tokens, of 20 offered.
    assert batch_tokens_served(requests, 5.0) == 19 / 20
    assert batch_tokens_served(requests, 0.5) == 9 / 20
    assert batch_tokens_served([chat(0.1)], 5.0) == 1.0


def test_batch_work_put_off_is_not_served() -> None:
    verdict = judge([chat(0.1), batch(4.0, asked=20)], LEVEL)
    assert verdict.reasons == ("32.1% of the batch tokens came in time, under 0.75",)


def test_a_single_target_is_a_target() -> None:
    only_tpot = ServiceClass("reader", tpot_s=0.1)
    slow = ServedRequest(RequestLatency(0.0, (1.0, 2.0)), only_tpot, 4, 2)
    assert judge([slow], LEVEL).attained == 0.0


@pytest.mark.parametrize("changes", [{"attainment": 99}, {"batch_tokens": 0}, {"max_ttft_s": 0}])
def test_a_level_must_make_sense(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        ServiceLevel(**changes)
