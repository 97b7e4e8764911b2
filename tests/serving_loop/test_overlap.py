"""Steps launched ahead give what steps one after the other give, whatever happens meanwhile.

The device here computes a step when its results are asked for, and not before. It keeps tokens in KV blocks
and chooses the next one by what it reads there, so that a block freed, shared or written too early shows as
another token.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightpack.requests.outputs import TokenLogprobs, Update
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD, ServiceClass
from tightpack.requests.service_class_settings import SERVICE_CLASSES
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.scheduling.registry import POLICY_NAMES, make_policy
from tightpack.serving_loop.executor import UNREAD_TOKEN, SampledToken, StepResult
from tightpack.serving_loop.loop import ServingLoop

BLOCK = 4
VOCABULARY = 50
EOS, STOP = 7, 8


def mixed(*numbers: int) -> int:
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=4).digest(), "little")


@dataclass
class Launched:
    plan: StepPlan
    inputs: list[list[int]]  # UNREAD_TOKEN where the step before gives it
    after: Launched | None
    sampling: list[Chunk]
    penalized: dict[str, int]
    num_outputs: dict[str, int]
    gave: dict[str, int] = field(default_factory=dict)  # as the next step takes it
    result: StepResult | None = None


class Device:
    """A LaunchingExecutor. late: one token in so many comes out other than was handed on. failing: one
    position in so many fails. 0 for none."""

    block_size = BLOCK
    description: Mapping[str, str] = {"backend": "test", "device": "cpu"}

    def __init__(self, num_blocks: int, *, ahead: bool, late: int = 0, failing: int = 0) -> None:
        self.num_blocks = num_blocks
        self.async_scheduling = ahead
        self.late, self.failing = late, failing
        self.time = 0.0
        self.memory: dict[tuple[int, int], int] = {}
        self.queue: list[Launched] = []
        self.launched_ahead = 0
        self.misled = 0

    def now(self) -> float:
        return self.time

    def may_be_followed(self, plan: StepPlan) -> bool:
        return not any(chunk.request.params.presence_penalty for chunk in plan.chunks)

    def execute(self, plan: StepPlan) -> StepResult:
        return self.collect(self.launch(plan))

    def launch(self, plan: StepPlan, after: Launched | None = None) -> Launched:
        assert len(self.queue) <= 1
        inputs = []
        for chunk in plan.chunks:
            tokens = chunk.request.token_ids
            inputs.append(tokens[chunk.first_token : chunk.first_token + chunk.num_tokens])
            assert UNREAD_TOKEN not in inputs[-1] or after is not None
            assert UNREAD_TOKEN not in tokens[:-1]
        sampling = [chunk for chunk in plan.chunks if chunk.samples]
        penalized = {}
        for chunk in sampling:
            if chunk.request.params.presence_penalty:
                assert chunk.request.token_ids[-1] != UNREAD_TOKEN
                penalized[chunk.request.request_id] = sum(chunk.request.output_token_ids)
        launched = Launched(
            plan,
            inputs,
            after,
            sampling,
            penalized,
            {chunk.request.request_id: chunk.request.num_output_tokens for chunk in sampling},
        )
        self.queue.append(launched)
        self.launched_ahead += after is not None
        return launched

    def collect(self, launched: Launched) -> StepResult:
        assert self.queue[0] is launched, "steps are collected in the order of their launch"
        # The device may be further than what is asked for, or not: all orders have to do.
        self.compute(launched)
        if len(self.queue) > 1 and mixed(round(1000 * self.time)) % 2:
            self.compute(self.queue[1])
        self.queue.pop(0)
        assert launched.result is not None
        return launched.result

    def compute(self, launched: Launched) -> None:
        if launched.result is not None:
            return
        self.time += 0.01
        sampled, failed, misled = {}, {}, False
        histories: dict[str, list[int]] = {}
        for chunk, inputs in zip(launched.plan.chunks, launched.inputs, strict=True):
            request = chunk.request
            for index, token in enumerate(inputs):
                if token == UNREAD_TOKEN:
                    assert launched.after is not None
                    token = launched.after.gave[request.request_id]
                self.memory[self.place(chunk, chunk.first_token + index)] = token
        for chunk in launched.plan.chunks:
            end = chunk.first_token + chunk.num_tokens
            read = [self.memory[self.place(chunk, p)] for p in range(end)]
            histories[chunk.request.request_id] = read
            # By position, wherever the prompt was cut.
            for position in range(chunk.first_token + 1, end + 1):
                if self.failing and mixed(*read[:position], 1) % self.failing == 0:
                    failed[chunk.request.request_id] = f"fails at {position}"
                    break
        for chunk in launched.sampling:
            request = chunk.request
            name = request.request_id
            history = histories[name]
            token = mixed(*history, request.seed, launched.num_outputs[name], launched.penalized.get(name, 0))
            token %= VOCABULARY
            launched.gave[name] = token
            if self.late and mixed(*history, 2) % self.late == 0:
                launched.gave[name] = (token + 1) % VOCABULARY
                misled |= name not in failed
            if name not in failed:
                wanted = request.params.logprobs is not None
                sampled[name] = SampledToken(
                    token, TokenLogprobs(token, -len(history), 1) if wanted else None
                )
        self.misled += misled
        launched.result = StepResult(sampled, 0.01, {}, failed, misled_next=misled)

    @staticmethod
    def place(chunk: Chunk, position: int) -> tuple[int, int]:
        return chunk.block_table[position // BLOCK], position % BLOCK

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Job:
    """arrives: before which step. cut_after: tokens after which the reader drops it (a stop string)."""

    arrives: int
    prompt: tuple[int, ...]
    params: SamplingParams
    cut_after: int | None
    service: int


def random_jobs(rng: random.Random, count: int) -> list[Job]:
    beginnings = [tuple(rng.choices(range(VOCABULARY), k=rng.randint(1, 14))) for _ in range(2)]
    jobs = []
    for _ in range(count):
        own = tuple(rng.choices(range(VOCABULARY), k=rng.randint(1, 6)))
        params = SamplingParams(
            max_tokens=(longest := rng.choice([1, 2, 3, 8, 20])),
            min_tokens=rng.choice([0, 0, min(3, longest)]),
            stop_token_ids=[STOP] if rng.random() < 0.5 else [],
            presence_penalty=0.5 if rng.random() < 0.15 else 0,
            logprobs=rng.choice([None, 0]),
        )
        cut = rng.randint(1, 6) if rng.random() < 0.2 else None
        jobs.append(
            Job(
                rng.choice([0, 0, rng.randint(0, 40)]),
                rng.choice(beginnings) + own,
                params,
                cut,
                rng.randint(0, 2),
            )
        )
    return sorted(jobs, key=lambda job: job.arrives)


@dataclass
class Served:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    last: Update | None = None


def serve(
    jobs: list[Job], device: Device, policy: str, limits: SchedulerLimits
) -> tuple[dict[str, Any], ServingLoop]:
    """What the readers saw of each request: tokens, log-probabilities and how it ended."""
    loop = ServingLoop(make_policy(policy, limits), device, device)
    waiting = list(enumerate(jobs))
    seen: dict[str, Served] = {}
    cut: set[str] = set()
    step = 0
    while waiting or loop.has_unfinished:
        while waiting and waiting[0][1].arrives <= step:
            index, job = waiting.pop(0)
            request = Request(
                request_id=f"r{index}",
                prompt_token_ids=job.prompt,
                params=job.params,
                seed=index,
                max_output_tokens=job.params.max_tokens or 1,
                eos_token_ids=frozenset({EOS}),
                service_class=SERVICE_CLASSES[job.service],
                arrival_time=device.now(),
            )
            loop.add(request)
            seen[request.request_id] = Served()
        if not waiting:
            loop.close_intake()
        for update in loop.step():
            served = seen[update.request_id]
            limit = jobs[int(update.request_id[1:])].cut_after
            served.token_ids += update.token_ids
            served.logprobs += update.logprobs
            served.last = update
            if limit is not None and len(served.token_ids) >= limit:
                cut.add(update.request_id)
                loop.abort(update.request_id)
        device.time += 0.001
        step += 1
        assert step < 5000
        assert all(UNREAD_TOKEN not in request.token_ids for request in loop.requests)
    outcomes = {}
    for name, served in seen.items():
        assert served.last is not None
        limit = jobs[int(name[1:])].cut_after
        tokens, logprobs = served.token_ids, served.logprobs
        if name in cut:  # what a reader saw until it left
            outcomes[name] = (tokens[:limit], logprobs[:limit])
        else:
            last = served.last
            outcomes[name] = (tokens, logprobs, last.finish_reason, last.stop_reason, last.error)
    return outcomes, loop


@pytest.mark.parametrize("policy", POLICY_NAMES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), late=st.sampled_from([0, 0, 9]), failing=st.sampled_from([0, 0, 40]))
def test_what_is_given_out_is_the_same(policy: str, seed: int, late: int, failing: int) -> None:
    rng = random.Random(seed)
    num_blocks = rng.choice([12, 16, 200])
    limits = SchedulerLimits(
        max_num_seqs=rng.choice([2, 4, 8]),
        max_num_batched_tokens=48 if policy in ("static", "dynamic", "continuous") else rng.choice([8, 48]),
        max_model_len=48,
        block_size=BLOCK,
        num_blocks=num_blocks,
        enable_prefix_caching=rng.random() < 0.7,
    )
    jobs = random_jobs(rng, rng.randint(1, 12))
    options = {"late": late, "failing": failing}
    wanted, one_by_one = serve(jobs, Device(num_blocks, ahead=False, **options), policy, limits)
    found, overlapped = serve(jobs, Device(num_blocks, ahead=True, **options), policy, limits)
    assert found == wanted
    for loop in (one_by_one, overlapped):
        assert loop.policy.num_running == loop.policy.num_waiting == 0
        assert loop.policy.kv_usage == 0
    given_out = sum(len(outcome[0]) for outcome in wanted.values())
    assert overlapped.stats.generation_tokens >= given_out
    if not any(job.cut_after for job in jobs):
        assert overlapped.stats.generation_tokens == one_by_one.stats.generation_tokens == given_out


def decoding(prompt_lengths: list[int], ahead: bool = True, **params: Any) -> tuple[ServingLoop, Device]:
    device = Device(64, ahead=ahead)
    limits = SchedulerLimits(
        max_num_seqs=4, max_num_batched_tokens=68, max_model_len=64, block_size=BLOCK, num_blocks=64
    )
    loop = ServingLoop(make_policy("chunked-prefill", limits), device, device)
    for index, length in enumerate(prompt_lengths):
        loop.add(plain(f"r{index}", length, **params))
    return loop, device


def plain(
    name: str, length: int = 5, max_tokens: int = 10, service_class: ServiceClass = STANDARD, **params: Any
) -> Request:
    return Request(
        request_id=name,
        prompt_token_ids=tuple(range(10, 10 + length)),
        params=SamplingParams(max_tokens=max_tokens, **params),
        seed=3,
        max_output_tokens=max_tokens,
        service_class=service_class,
    )


def test_decodes_are_launched_before_the_step_before_is_read() -> None:
    loop, device = decoding([5, 7])
    for _ in range(3):
        loop.step()
    assert len(device.queue) == 1, "one step is always under way"
    while loop.has_unfinished:
        loop.step()
    # The prompts, and the tokens that come last, are waited for: 10 steps of which 8 were launched ahead.
    assert loop.stats.steps == 10
    assert device.launched_ahead == 8
    assert not device.queue


def test_penalties_wait_for_their_tokens() -> None:
    loop, device = decoding([5], presence_penalty=1.0)
    while loop.has_unfinished:
        loop.step()
    assert device.launched_ahead == 0


def test_steps_take_the_time_that_the_executor_says() -> None:
    """For the policy's step times: not what passes between launch and reading."""
    loop, _ = decoding([5])
    meter = loop.meter()
    while loop.has_unfinished:
        loop.step()
    assert meter.model.num_observed == loop.stats.steps == 10
    assert loop.stats.busy_s == pytest.approx(0.1)


def test_blocks_of_an_aborted_request_are_held_until_the_running_step_is_done() -> None:
    loop, _ = decoding([5, 5])
    for _ in range(3):
        loop.step()
    loop.abort("r0")
    assert loop.policy.num_running == 2
    updates = loop.step()
    assert [u.finish_reason for u in updates if u.request_id == "r0"] == ["abort"]
    assert [u.token_ids for u in updates if u.request_id == "r0"] == [()]
    assert loop.policy.num_running == 1


def test_a_deadline_takes_places_only_from_who_is_not_computed() -> None:
    device = Device(64, ahead=True)
    limits = SchedulerLimits(
        max_num_seqs=2, max_num_batched_tokens=68, max_model_len=64, block_size=BLOCK, num_blocks=64
    )
    loop = ServingLoop(make_policy("slo", limits), device, device)
    for name in ("r0", "r1"):
        loop.add(plain(name, max_tokens=20, service_class=BATCH))
    for _ in range(3):
        loop.step()
    loop.add(plain("urgent", max_tokens=2, service_class=INTERACTIVE))
    tokens: dict[str, list[int]] = {"r0": [], "r1": [], "urgent": []}
    for update in [update for _ in range(40) for update in loop.step()]:
        tokens[update.request_id] += update.token_ids
    assert loop.stats.preemptions == 1
    assert {name: len(given) for name, given in tokens.items()} == {"r0": 17, "r1": 17, "urgent": 2}


def test_an_id_can_be_used_again_at_once() -> None:
    loop, _ = decoding([5])
    for _ in range(3):
        loop.step()
    loop.abort("r0")
    loop.step()
    loop.add(plain("r0", 6, max_tokens=2))
    tokens = []
    while loop.has_unfinished:
        tokens += [t for update in loop.step() for t in update.token_ids]
    assert len(tokens) == 2


def test_a_device_that_fails_leaves_a_loop_that_can_go_on() -> None:
    loop, device = decoding([5, 7])
    for _ in range(3):
        loop.step()
    device.queue[0].inputs, device.queue[0].result = [], None  # what runs is broken
    with pytest.raises(ValueError, match="zip"):
        loop.step()
    assert {u.finish_reason for u in loop.fail_all("broken")} == {"error"}
    assert not loop.has_unfinished
    assert loop.policy.num_running == 0
    device.queue.clear()
    loop.add(plain("next", max_tokens=4))
    tokens = []
    while loop.has_unfinished:
        tokens += [t for update in loop.step() for t in update.token_ids]
    assert len(tokens) == 4
