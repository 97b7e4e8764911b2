"""Deadlines in the scheduler: each request is served by the latency targets of its service class."""

from __future__ import annotations

import math
from itertools import chain, count

from tightpack.requests.request import Request
from tightpack.requests.service_class import INTERACTIVE
from tightpack.scheduling.attainable import Departures, seconds_short
from tightpack.scheduling.fair_share import FairShares
from tightpack.scheduling.limits import SchedulerLimits, blocks_for
from tightpack.scheduling.pace import Pace
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy import UnattainableError
from tightpack.scheduling.policy_base import PolicyBase
from tightpack.scheduling.standing import Standing, Tier, WaitingLine
from tightpack.scheduling.step_builder import StepBuilder
from tightpack.scheduling.step_time import StepLoad, StepTimeModel
from tightpack.scheduling.triage import left_out

# A chunk of fewer tokens is not worth a place in a step, unless it ends its prompt.
_MIN_CHUNK = 16
# Seconds between triages. Deadlines move on by milliseconds, and a long queue takes one to look through.
_TRIAGE_EVERY = 0.02
# Prompts aim to be done before their deadline by this share of the tightest TTFT target.
_MARGIN = 0.05
# A request starts only if the decodes alone, with it among them, take no more than this share of the tightest
# TPOT target. Those without a deadline leave room for those who have one.
_FULL, _FULL_FOR_UNTIMED = 1.0, 0.75


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
        self._line = WaitingLine()
        self._shares = FairShares()
        self._departures = Departures()
        self._ages = count()
        self._tightest_ttft = INTERACTIVE.ttft_s or math.inf
        self._now = -math.inf
        self._next_triage = -math.inf
        self._num_prompt_tokens = 0
        self._places_taken = False

    def add(self, request: Request) -> None:
        super().add(request)
        standing = Standing.of(request, next(self._ages))
        standing.num_cached = self._num_cached(request)
        self._standings[request] = standing
        self._line.add(standing)
        self._shares.add(standing)
        if request.service_class.ttft_s is not None:
            self._tightest_ttft = min(self._tightest_ttft, request.service_class.ttft_s)

    def remove(self, request: Request) -> None:
        standing = self._standings.pop(request, None)
        if standing is not None:
            standing.served = True
            if standing.waiting:
                self._line.discard(standing)
            else:
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
            if not step.lost(standing.request):
                step.compute(standing.request, 1)
        self._promote(now)
        self._num_prompt_tokens = 0
        if prompts or self._queues.waiting:
            self._triage(prompts, now)
            self._place_prompts(step, prompts)
        plan = step.plan()
        for request in plan.evicted:
            self._put_back(self._standings[request], now)
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

    def _put_back(self, standing: Standing, now: float) -> None:
        standing.waiting, standing.served = True, False
        standing.waits_since = now
        standing.num_cached = self._num_cached(standing.request)
        self._line.add(standing)
        self._shares.add_back(standing)

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
        short = seconds_short(
            standing,
            chain(prompts, self._line.of_tier(Tier.PROMOTED), self._line.unsettled()),
            self._pace,
            now,
            self._departures,
            places_taken=self._places_taken,
        )
        if short > 0:
            self._blocks.forget(request)
            target = request.service_class
            raise UnattainableError(
                f"the first token would come about {short:.1f} s later than the {target.ttft_s:g} s that "
                f"service class {target.name!r} promises; try again in {math.ceil(short)} s",
                short,
            )

    def _promote(self, now: float) -> None:
        for standing in self._shares.due(now, self._num_prompt_tokens):
            if standing.waiting:
                self._line.move(standing, Tier.PROMOTED)
            else:
                standing.tier = Tier.PROMOTED

    def _triage(self, prompts: list[Standing], now: float) -> None:
        """Find out anew whose deadlines can be made: those of the line, and of prompts under way."""
        if now < self._next_triage:
            return
        self._next_triage = now + _TRIAGE_EVERY
        pace = self._pace
        at_stake = [s for s in prompts if Tier.CHOSEN <= s.tier <= Tier.LATE]
        hopeful = []
        for standing in chain(self._line.unsettled(), at_stake):
            if standing.first_token_time is not None:
                continue  # it decoded before it was preempted: its place is in front
            if now + pace.fixed_s + pace.seconds(standing) > standing.deadline:
                self._set_tier(standing, Tier.LATE)
            else:
                hopeful.append(standing)
        hopeful.sort(key=lambda standing: standing.order[1:])
        margin = _MARGIN * self._tightest_ttft
        out = left_out(hopeful, pace.seconds, lambda work: pace.finish(now, work) + margin)
        for standing in hopeful:
            self._set_tier(standing, Tier.LEFT_OUT if standing in out else Tier.CHOSEN)

    def _set_tier(self, standing: Standing, tier: Tier) -> None:
        if standing.waiting:
            self._line.move(standing, tier)
        else:
            standing.tier = tier

    def _place_prompts(self, step: StepBuilder, prompts: list[Standing]) -> None:
        """Spend the step's room on prompts under way and on waiting ones, in the order of their standing."""
        room = self._pace.room_s
        under_way = sorted(prompts, key=lambda standing: standing.order, reverse=True)
        waiting = self._line.first()
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
                waiting = self._line.first()
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
        request = standing.request
        if self._queues.running:
            tightest = min(self._pace.tightest_tpot, request.service_class.tpot_s or math.inf)
            share = _FULL_FOR_UNTIMED if standing.tier is Tier.UNTIMED else _FULL
            if self._pace.with_one_more(len(request.token_ids)) > share * tightest:
                return False
        if not step.start(request) and not self._start_in_place_of_untimed(step, standing):
            return False
        self._line.discard(standing)
        standing.waiting = False
        return True

    def _start_in_place_of_untimed(self, step: StepBuilder, standing: Standing) -> bool:
        """Preempt as many requests without targets as it takes, if that is enough; least work lost first."""
        if standing.tier >= Tier.LATE:
            return False
        running = self._queues.running
        free = self._blocks.num_free
        needed = blocks_for(len(standing.request.token_ids), self.limits.block_size) + len(running)
        slots = len(running) + 1 - self.limits.max_num_seqs
        untimed = [r for r in running if self._standings[r].tier is Tier.UNTIMED]
        victims: list[Request] = []
        for request in sorted(untimed, key=lambda r: (r.num_pending_tokens == 1, r.num_computed_tokens)):
            if free >= needed and len(victims) >= slots:
                break
            free += len(self._blocks.block_table(request))
            victims.append(request)
        if free < needed or len(victims) < slots:
            return False
        for request in victims:
            step.preempt(request)
        return step.start(standing.request)
