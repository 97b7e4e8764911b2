"""Deadlines in the scheduler: each request is served by the latency targets of its service class."""

from __future__ import annotations

import math
from itertools import chain, count

from tightpack.requests.request import Request
from tightpack.requests.service_class import INTERACTIVE
from tightpack.scheduling.attainable import Departures, attainable_in
from tightpack.scheduling.limits import SchedulerLimits, blocks_for
from tightpack.scheduling.pace import Pace
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy import UnattainableError
from tightpack.scheduling.policy_base import PolicyBase
from tightpack.scheduling.prompt_order import PromptOrder
from tightpack.scheduling.standing import Standing, Tier
from tightpack.scheduling.step_builder import StepBuilder
from tightpack.scheduling.step_time import StepLoad, StepTimeModel

# A chunk of fewer tokens is not worth a place in a step, unless it ends its prompt.
_MIN_CHUNK = 16
# A request starts only if the decodes alone, with it among them, take no more than this share of the tightest
# TPOT target. Those without a deadline leave room for those who have one.
_FULL, _FULL_FOR_UNTIMED = 0.9, 0.75


class SloPolicy(PolicyBase):
    """Every decode runs each step; prompts get the time that keeps the decodes' pace, nearest deadline first.

    How long a step takes is learned from the steps executed (`StepTimeModel`), and with it how many prompt
    tokens a step may hold (`Pace`). Prompts are served in the order of their `Tier`: those that will make
    their TTFT target before those that cannot, and those without a target last; for who waits longer than
    PATIENCE, `FairShares` bounds the wait. When slots or KV blocks run short, requests without targets give
    up theirs first.
    """

    name = "slo"

    def __init__(self, limits: SchedulerLimits) -> None:
        super().__init__(limits)
        self._model = StepTimeModel()
        self._pace = Pace(self._model)
        self._standings: dict[Request, Standing] = {}
        self._order = PromptOrder(self._pace)
        self._departures = Departures()
        self._ages = count()
        self._tightest_ttft = INTERACTIVE.ttft_s or math.inf
        self._now = -math.inf
        self._num_prompt_tokens = 0
        self._places_taken = False

    @property
    def step_times(self) -> StepTimeModel:
        return self._model

    @property
    def _gap_s(self) -> float:
        """Seconds until the next place is free, where somebody waits for one."""
        return self._departures.gap_s if self._places_taken else 0.0

    @property
    def prompt_room_s(self) -> float | None:
        return self._pace.room_s or None

    @property
    def evicts_nobody(self) -> bool:
        return super().evicts_nobody and not self._queues.waiting  # a deadline may take others' places

    def is_behind(self, request: Request) -> bool:
        standing = self._standings[request]
        return standing.tier is Tier.UNTIMED or (standing.waiting and standing.tier > Tier.CHOSEN)

    def add(self, request: Request) -> None:
        super().add(request)
        standing = Standing.of(request, next(self._ages))
        standing.num_cached = self._num_cached(request)
        self._standings[request] = standing
        self._order.add(standing)
        if request.service_class.ttft_s is not None:
            self._tightest_ttft = min(self._tightest_ttft, request.service_class.ttft_s)

    def remove(self, request: Request) -> None:
        standing = self._standings.pop(request, None)
        if standing is not None:
            self._order.end(standing)
            if not standing.waiting:
                self._departures.note()
        super().remove(request)

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:
        self._model.observe(StepLoad.of(plan), elapsed_s)

    def plan(self, now: float) -> StepPlan:
        self._now = now
        self._departures.settle(now, busy=bool(self._queues.running))
        step = StepBuilder(self.limits, self._queues, self._blocks, self._rank)
        decoding, prompts = self._running(now)
        self._pace.set(decoding, now, self._tightest_ttft)
        for standing in decoding:
            if not (step.num_lost and step.lost(standing.request)):
                step.compute(standing.request, 1)
        self._order.promote(now, self._num_prompt_tokens)
        self._num_prompt_tokens = 0
        if prompts or self._queues.waiting:
            self._order.triage(prompts, now, self._gap_s)
            self._place_prompts(step, prompts)
        plan = step.plan()
        for request in plan.evicted:
            standing = self._standings[request]
            standing.num_cached = self._num_cached(request)
            self._order.put_back(standing, now)
        return plan

    def _running(self, now: float) -> tuple[list[Standing], list[Standing]]:
        """Those who decode, and those whose prompts are under way, both oldest first."""
        standings = self._standings
        decoding, prompts = [], []
        for request in self._queues.running:
            standing = standings[request]
            length = len(request.token_ids)
            if length - request.num_computed_tokens > 1:
                prompts.append(standing)
                continue
            decoding.append(standing)
            if not standing.served and length > len(request.prompt_token_ids):
                standing.served = True
                if standing.first_token_time is None:
                    standing.first_token_time = now
        return decoding, prompts

    def _rank(self, request: Request) -> int:
        """Who loses its blocks first when the decodes run out of them: those of the highest rank."""
        tier = self._standings[request].tier
        return 0 if tier is Tier.PROMOTED else 2 if tier is Tier.UNTIMED else 1

    def _num_cached(self, request: Request) -> int:
        return len(self._blocks.lookup(request)) * self.limits.block_size

    def _check(self, request: Request) -> None:
        super()._check(request)
        idle = not self._queues.running and not self._queues.waiting
        if self.limits.reject_unattainable and not idle:  # an idle machine will not do better later
            self._require_attainable(request)

    def _require_attainable(self, request: Request) -> None:
        standing = Standing.of(request, age=0)
        standing.num_cached = self._num_cached(request)
        now = max(self._now, request.arrival_time)
        running = (self._standings[request] for request in self._queues.running)
        prompts = (s for s in running if not s.served and s.tier <= Tier.LEFT_OUT)
        wait = attainable_in(
            standing,
            chain(prompts, self._order.line.of_tier(Tier.PROMOTED), self._order.line.unsettled()),
            self._pace,
            now,
            self._gap_s,
        )
        if wait > 0:
            self._blocks.forget(request)
            target = request.service_class
            raise UnattainableError(
                f"the first token within {target.ttft_s:g} s that service class {target.name!r} promises "
                f"cannot be kept beside those taken before; try again in {math.ceil(wait)} s",
                wait,
            )

    def _place_prompts(self, step: StepBuilder, prompts: list[Standing]) -> None:
        """Spend the step's room on prompts under way and on waiting ones, in the order of their standing."""
        room = self._pace.room_s
        under_way = sorted(prompts, key=lambda standing: standing.order, reverse=True)
        waiting = self._order.line.first()
        self._places_taken = False
        while step.tokens_left:
            while under_way and step.lost(under_way[-1].request):
                under_way.pop()
            if waiting and not (under_way and under_way[-1].order < waiting.order):
                standing = waiting
                standing.num_cached = self._num_cached(standing.request)
            elif under_way:
                standing = under_way[-1]
            else:
                return
            num_tokens = self._chunk(step, standing, room)
            if num_tokens == 0:
                return
            if standing is not waiting:
                under_way.pop()
            elif self._start(step, standing):
                waiting = self._order.line.first()
            else:  # nobody behind it takes the place that it waits for
                self._places_taken = standing.tier <= Tier.LEFT_OUT
                waiting = None
                continue
            num_tokens = min(num_tokens, standing.num_pending)  # it may have found more in the cache
            room -= self._model.prompt_seconds(standing.first_pending, num_tokens)
            self._num_prompt_tokens += num_tokens
            step.compute(standing.request, num_tokens)

    def _chunk(self, step: StepBuilder, standing: Standing, room: float) -> int:
        """Tokens of the prompt that fit into the step; 0 when it is full."""
        most = min(standing.num_pending, step.tokens_left)
        fits = min(most, self._model.prompt_tokens_within(room, standing.first_pending))
        if fits >= min(standing.num_pending, _MIN_CHUNK):
            return fits
        return min(most, _MIN_CHUNK) if step.is_empty else 0  # a step that computes nothing helps nobody

    def _start(self, step: StepBuilder, standing: Standing) -> bool:
        excess = -math.inf
        if self._queues.running:
            share = _FULL_FOR_UNTIMED if standing.tier is Tier.UNTIMED else _FULL
            excess = self._pace.excess(standing.request, share)
        if excess > 0 or not step.start(standing.request):
            # Only who can still make its deadline, or is owed the place, takes it from others.
            if standing.tier >= Tier.LATE or not self._make_room(step, standing.request, excess):
                return False
            if not step.start(standing.request):
                return False
        self._order.start(standing)
        return True

    def _make_room(self, step: StepBuilder, request: Request, excess: float) -> bool:
        """Preempt requests without targets, least work lost first, as many as it takes if that is enough.

        excess: seconds that the decodes must save.
        """
        running = self._queues.running
        untimed = [r for r in running if self._standings[r].tier is Tier.UNTIMED]
        if not untimed:
            return False
        slots = len(running) + 1 - self.limits.max_num_seqs
        blocks = blocks_for(len(request.token_ids), self.limits.block_size) + len(running)
        blocks -= self._blocks.num_free
        untimed.sort(key=lambda r: (r.num_pending_tokens == 1, r.num_computed_tokens), reverse=True)
        victims: list[Request] = []
        while slots > len(victims) or blocks > 0 or excess > 0:
            if not untimed:
                return False
            victim = untimed.pop()
            victims.append(victim)
            blocks -= len(self._blocks.block_table(victim))
            if victim.num_pending_tokens == 1:
                excess -= self._pace.decode_seconds(victim)
        for victim in victims:
            step.preempt(victim)
        return True
