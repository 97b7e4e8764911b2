"""The predicted TTFT, by hand and against the loop that serves, on a virtual clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar

import pytest

from tightpack.cluster.prediction import Work, predict
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.step_time import StepLoad
from tightpack.serving_loop.load import ClassLoad, EngineLoad
from tightpack.simulated.engine import make_simulated_loop
from tightpack.simulated.virtual_clock import VirtualClock

MakeLoad = Callable[..., EngineLoad]


def test_alone_it_takes_its_own_steps(make_load: MakeLoad) -> None:
    one_step = predict(make_load(), Work(STANDARD, 200))
    assert one_step.ttft_s == pytest.approx(0.01 + 200 * 0.0002)
    assert one_step.tpot_s == pytest.approx(0.01 + 0.0001)
    four_steps = predict(make_load(), Work(STANDARD, 1000))
    assert four_steps.ttft_s == pytest.approx(4 * 0.01 + 1000 * 0.0002)


def test_cached_tokens_cost_nothing(make_load: MakeLoad) -> None:
    assert predict(make_load(), Work(STANDARD, 1000, 900)).ttft_s == pytest.approx(0.01 + 100 * 0.0002)


def test_what_was_sent_since_counts_as_what_was_published(make_load: MakeLoad) -> None:
    published = predict(make_load(waiting=500), Work(STANDARD, 100))
    unseen = predict(make_load(), Work(STANDARD, 100), [Work(STANDARD, 500)])
    assert published.ttft_s == pytest.approx(unseen.ttft_s)
    assert published.tpot_s == pytest.approx(unseen.tpot_s)


def test_waits_for_a_place(make_load: MakeLoad) -> None:
    busy = {"num_running": 8, "decodes": 8, "by_class": {"standard": ClassLoad(8, 0, 0)}}
    full = predict(make_load(**busy), Work(STANDARD, 10))
    assert full.ttft_s > 0.1 > predict(make_load(**(busy | {"max_num_seqs": 9})), Work(STANDARD, 10)).ttft_s


def test_under_slo_targets_pass_batch_work(make_load: MakeLoad) -> None:
    load = make_load(policy="slo", by_class={"batch": ClassLoad(20, 50_000, 0)})
    assert predict(load, Work(INTERACTIVE, 10)).ttft_s < 0.1
    assert predict(load, Work(BATCH, 10)).ttft_s > 10
    assert predict(make_load(by_class=load.by_class), Work(INTERACTIVE, 10)).ttft_s > 10


class LinearCost:
    """A machine of the kind that the step-time model learns."""

    description: ClassVar[dict[str, str]] = {}

    def step_seconds(self, plan: StepPlan) -> float:
        load = StepLoad.of(plan)
        return 0.008 + 2e-4 * load.prompt_tokens + 2e-4 * load.decodes + 1e-7 * load.decode_context


@pytest.mark.parametrize("policy", ["chunked-prefill", "continuous", "slo"])
def test_agrees_with_the_loop(policy: str) -> None:
    """Requests at random under a load that queues; each TTFT was predicted when it came."""
    draw = random.Random(5)
    limits = SchedulerLimits(
        max_num_seqs=12,
        max_num_batched_tokens=2100 if policy == "continuous" else 256,
        max_model_len=2048,
        block_size=16,
        num_blocks=4096,
        enable_prefix_caching=False,
    )
    clock = VirtualClock()
    loop = make_simulated_loop(LinearCost(), limits, policy, clock)
    meter = loop.meter()
    predicted: dict[str, float] = {}
    came: dict[str, Request] = {}
    due = 0.0
    errors = []
    while len(came) < 250 or loop.has_unfinished:
        while len(came) < 250 and due <= clock.now():
            name, tokens = str(len(came)), draw.choice((50, 200, 600))
            request = Request(
                request_id=name,
                prompt_token_ids=(1,) * tokens,
                params=SamplingParams(temperature=0),
                seed=0,
                max_output_tokens=draw.choice((20, 60)),
                arrival_time=clock.now(),
            )
            load = meter.load(loop.policy, limits, (r for r in loop.requests if not r.finished))
            predicted[name] = predict(load, Work(STANDARD, tokens)).ttft_s
            came[name] = request
            loop.add(request)
            due += draw.expovariate(14.0)
        if loop.next_wakeup() is None:
            clock.sleep(max(0.0, due - clock.now()))
            continue
        loop.step()
    for name, request in came.items():
        if int(name) >= 75:  # the first ones come while the machine is learned
            measured = request.timings.token_times[0] - request.arrival_time
            errors.append(abs(predicted[name] - measured) / measured)
    errors.sort()
    assert errors[len(errors) // 2] < 0.3
    assert errors[int(0.9 * len(errors))] < 0.75
