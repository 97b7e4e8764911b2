"""The deadline-aware policy step by step, on a machine whose steps take what it has learned."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import BATCH, INTERACTIVE, STANDARD, ServiceClass
from tightpack.scheduling.fair_share import PATIENCE
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.policy import QueueFullError, UnattainableError
from tightpack.scheduling.slo import SloPolicy
from tightpack.scheduling.step_time import StepLoad


class Machine:
    """Runs a policy on virtual time: 5 ms a step, 1 ms a prompt token, 1 ms a decode."""

    def __init__(self, **changes):
        limits = {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 512,
            "max_model_len": 1024,
            "block_size": 16,
            "num_blocks": 1024,
            "enable_prefix_caching": False,
        }
        self.policy = SloPolicy(SchedulerLimits(**(limits | changes)))
        self.now = 0.0
        self.first_token = {}
        self.plans = []
        self._names = 0

    def learn(self):
        """Let the policy know the machine: twice as many steps as it needs to trust its model."""
        for length in range(32):
            self.add(20 + 9 * length, STANDARD, output=3)
            self.add(20 + 5 * length, STANDARD, output=9)
            self.run()
        self.plans.clear()
        return self

    def add(self, prompt, service_class=INTERACTIVE, output=4, name=None):
        self._names += 1
        request = Request(
            request_id=name or str(self._names),
            prompt_token_ids=(self._names,) * prompt,
            params=SamplingParams(max_tokens=output),
            seed=0,
            max_output_tokens=output,
            service_class=service_class,
            arrival_time=self.now,
        )
        self.policy.add(request)
        return request

    def step(self):
        plan = self.policy.plan(self.now)
        if not plan:
            return plan
        load = StepLoad.of(plan)
        elapsed = 5e-3 + 1e-3 * (load.prompt_tokens + load.decodes)
        self.now += elapsed
        self.plans.append(plan)
        self.policy.observe(plan, elapsed)
        sampling = [chunk.request for chunk in plan.chunks if chunk.samples]
        for request in sampling:
            request.token_ids.append(7)
            self.first_token.setdefault(request.request_id, self.now)
        self.policy.commit(plan)
        for request in sampling:
            if request.num_output_tokens == request.max_output_tokens:
                self.policy.remove(request)
        return plan

    def run(self, until=float("inf")):
        while self.now < until and (self.policy.num_running or self.policy.num_waiting):
            self.step()


@pytest.fixture
def machine():
    return Machine().learn()


def finished_first(machine, *requests):
    return sorted((r.request_id for r in requests), key=machine.first_token.__getitem__)


def test_the_nearest_deadline_is_served_first(machine):
    requests = [machine.add(100, STANDARD, name="standard"), machine.add(100, name="interactive")]
    machine.run()
    assert finished_first(machine, *requests) == ["interactive", "standard"]


def test_work_without_a_deadline_fills_what_is_left(machine):
    batch = machine.add(100, BATCH, name="batch")
    others = [machine.add(100, STANDARD), machine.add(100, INTERACTIVE)]
    machine.run()
    assert finished_first(machine, batch, *others)[-1] == "batch"


def test_who_cannot_make_its_deadline_steps_behind_who_can(machine):
    hopeless = machine.add(600, name="hopeless")  # 0.6 s of work for 0.5 s
    hopeful = [machine.add(200, name="first"), machine.add(200, name="second")]
    arrival = machine.now
    machine.run()
    assert finished_first(machine, hopeless, *hopeful) == ["first", "second", "hopeless"]
    assert all(machine.first_token[r.request_id] - arrival <= 0.5 for r in hopeful)


def test_every_decode_runs_in_every_step_and_keeps_its_pace(machine):
    decoding = machine.add(20, output=40, name="decoding")
    machine.step()
    started = machine.first_token["decoding"]
    machine.add(900, STANDARD)
    machine.plans.clear()
    while decoding.num_output_tokens < 40:
        assert any(chunk.request is decoding for chunk in machine.step().chunks)
    assert (machine.now - started) / 39 <= INTERACTIVE.tpot_s
    assert max(plan.num_tokens for plan in machine.plans) > 20, "prompts had no part of the steps"


def test_the_token_budget_is_kept_whatever_the_time_allows():
    machine = Machine(max_num_batched_tokens=32)
    machine.add(500, BATCH)
    machine.run()
    assert max(plan.num_tokens for plan in machine.plans) == 32


def test_batch_work_gives_up_its_slot_and_its_blocks_first():
    machine = Machine(max_num_seqs=2, num_blocks=64).learn()
    batch = [machine.add(300, BATCH, output=200), machine.add(300, BATCH, output=200)]
    for _ in range(20):
        machine.step()
    urgent = machine.add(300, name="urgent")
    arrival = machine.now
    machine.run()
    assert sum(r.num_preemptions for r in batch) >= 1
    assert urgent.num_preemptions == 0
    assert machine.first_token["urgent"] - arrival <= 0.5


def test_batch_work_makes_way_where_its_decodes_alone_take_too_long():
    machine = Machine(max_num_seqs=64).learn()
    for _ in range(60):
        machine.add(20, BATCH, output=500)
    while machine.policy.num_running < 60 or machine.policy.num_waiting:
        machine.step()
    for _ in range(100):
        machine.step()
    assert machine.plans[-1].num_tokens == 60  # 65 ms a step, where 50 will be asked for
    urgent = machine.add(50, output=40, name="urgent")
    arrival = machine.now
    while urgent.num_output_tokens < 40:
        machine.step()
    first = machine.first_token["urgent"]
    assert first - arrival <= INTERACTIVE.ttft_s
    assert (machine.now - first) / 39 <= INTERACTIVE.tpot_s


def test_a_target_that_no_machine_could_keep_holds_nobody_up(machine):
    running = machine.add(20, STANDARD, output=300)
    machine.step()
    impossible = machine.add(20, ServiceClass("impossible", ttft_s=0.5, tpot_s=1e-4))
    machine.step()
    machine.step()
    assert impossible.num_output_tokens > 0
    assert running.num_output_tokens < 10


def test_deadlines_never_take_the_place_of_each_other():
    machine = Machine(max_num_seqs=2).learn()
    running = [machine.add(50, STANDARD, output=100), machine.add(50, STANDARD, output=100)]
    machine.step()
    machine.add(50)
    machine.run()
    assert all(r.num_preemptions == 0 for r in running)


@pytest.mark.parametrize("service_class", [BATCH, INTERACTIVE])
def test_nobody_waits_beyond_the_bound_however_busy_the_machine(machine, service_class):
    """Others bring more prompts than the machine can compute; the share says how many of theirs pass."""
    prompt = 600  # which is late from the start
    starved = machine.add(prompt, service_class, name="starved")
    lost_patience = machine.now + PATIENCE
    passed = 0
    while "starved" not in machine.first_token:
        if machine.policy.num_waiting < 20:
            machine.add(150, output=1)
        plan = machine.step()
        if machine.now > lost_patience:
            passed += sum(c.num_tokens for c in plan.chunks if c.request is not starved)
        assert passed <= prompt / service_class.share + 512
    assert passed > prompt, "the machine was not busy, so this shows nothing"


def test_a_larger_share_shortens_the_wait():
    waits = []
    for share in (0.05, 0.5):
        machine = Machine().learn()
        machine.add(600, replace(BATCH, share=share), name="batch")
        arrival = machine.now
        while "batch" not in machine.first_token:
            if machine.policy.num_waiting < 20:
                machine.add(150, output=1)
            machine.step()
        waits.append(machine.first_token["batch"] - arrival)
    assert waits[1] < 0.75 * waits[0]


class TestRejectUnattainable:
    @pytest.fixture
    def machine(self):
        return Machine(reject_unattainable=True).learn()

    def test_what_would_be_late_is_refused_with_the_time_to_wait(self, machine):
        machine.add(400)
        with pytest.raises(UnattainableError, match=r"0\.5 s that service class 'interactive'") as refused:
            machine.add(400)
        assert isinstance(refused.value, QueueFullError)
        assert 0.2 < refused.value.retry_after_s < 0.6

    def test_who_comes_back_after_that_time_is_taken_and_served_in_time(self, machine):
        machine.add(400)
        machine.step()
        with pytest.raises(UnattainableError) as refused:
            machine.add(400)
        machine.run(until=machine.now + refused.value.retry_after_s)
        machine.add(400, name="again")
        arrival = machine.now
        machine.run()
        assert machine.first_token["again"] - arrival <= INTERACTIVE.ttft_s

    def test_others_with_more_time_are_taken(self, machine):
        machine.add(400)
        machine.add(400, STANDARD)
        machine.add(400, BATCH)

    def test_nobody_is_taken_whom_others_would_pay_for(self, machine):
        """The newcomer would be in time, but those who have more of it would not be any more."""
        promised = [machine.add(400, STANDARD, name=f"promised {number}") for number in range(4)]
        with pytest.raises(UnattainableError):
            machine.add(300)
        machine.add(40)
        machine.run()
        assert all(machine.first_token[r.request_id] <= r.arrival_time + STANDARD.ttft_s for r in promised)

    def test_an_idle_machine_refuses_nobody(self, machine):
        machine.add(900, ServiceClass("impossible", ttft_s=0.01))

    def test_a_policy_that_does_not_know_the_machine_yet_refuses_nobody(self):
        machine = Machine(reject_unattainable=True)
        for _ in range(20):
            machine.add(500)

    def test_waiting_for_a_place_counts(self):
        machine = Machine(reject_unattainable=True, max_num_seqs=1).learn()
        for _ in range(12):
            machine.add(20, STANDARD, output=100)
            machine.run()
        machine.add(20, STANDARD, output=100)
        machine.step()
        machine.add(20, STANDARD)
        machine.step()
        with pytest.raises(UnattainableError):
            machine.add(20)
