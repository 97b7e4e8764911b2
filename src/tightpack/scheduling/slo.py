"""Deadlines in the scheduler: each request is served by the latency targets of its class."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count

from tightpack.requests.request import Request
from tightpack.scheduling.fair_share import FairShares
from tightpack.scheduling.limits import SchedulerLimits, blocks_for
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy_base import PolicyBase
from tightpack.scheduling.standing import Standing, Tier, WaitingLine
from tightpack.scheduling.step_builder import StepBuilder
from tightpack.scheduling.step_time import StepLoad, StepTimeModel
from tightpack.scheduling.triage import left_out

# Decodes aim at this share of their TPOT target: what is left pays for steps that take longer than predicted.
HEADROOM = 0.9
# A decode that is behind its pace asks for steps of LOW targets, so that it catches up; one that is ahead
# allows HIGH targets at the most, so that no gap between its tokens is longer.
LOW, HIGH = 0.8, 2.0
# Without decodes to keep, a step still ends within this share of the tightest TTFT target, for who may come.
REACTION = 0.2
DEFAULT_TTFT = 0.5
# Prompts go on, if slowly, where the decodes alone take all the time there is.
MIN_SHARE = 0.1
# A chunk below this is not worth its overhead, unless it ends a prompt.
MIN_CHUNK = 16
TRIAGE_EVERY = 0.02
# The share of the tightest TPOT target that the decodes alone may take for one more to start.
GATE, GATE_UNTIMED = 1.0, 0.75


class SloPolicy(PolicyBase):
    name = "slo"

    def __init__(self, limits: SchedulerLimits) -> None:
        super().__init__(limits)
        self.model = StepTimeModel()
        self._standings: dict[Request, Standing] = {}
        self._line = WaitingLine()
        self._shares = FairShares()
        self._ages = count()
        self._tightest_ttft = DEFAULT_TTFT
        self._tightest_tpot = math.inf
        self._next_triage = -math.inf
        self._num_prompt_tokens = 0
        self._fixed = 0.0  # the part of the step under way that prompts do not add
        self._room = REACTION * DEFAULT_TTFT

    def add(self, request: Request) -> None:
        super().add(request)
        standing = Standing.of(request, next(self._ages))
        standing.num_cached = len(self._blocks.lookup(request)) * self.limits.block_size
        self._standings[request] = standing
        self._line.add(standing)
        self._shares.add(standing)
        if request.service_class.ttft_s is not None:
            self._tightest_ttft = min(self._tightest_ttft, request.service_class.ttft_s)

    def remove(self, request: Request) -> None:
        standing = self._standings.pop(request, None)
        if standing is not None:
            standing.served = True
            if request not in self._queues.running:
                self._line.discard(standing)
        super().remove(request)

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:
        self.model.observe(StepLoad.of(plan), elapsed_s)

    def plan(self, now: float) -> StepPlan:
        step = StepBuilder(self.limits, self._queues, self._blocks, self._rank)
        prompts = self._place_decodes(step, now)
        for standing in self._shares.due(now, self._num_prompt_tokens):
            if standing in prompts:
                standing.tier = Tier.PROMOTED
            else:
                self._line.move(standing, Tier.PROMOTED)
        self._num_prompt_tokens = 0
        if prompts or self._queues.waiting:
            self._triage(prompts, now)
            self._place_prompts(step, prompts)
        plan = step.plan()
        for request in plan.evicted:
            standing = self._standings[request]
            standing.waits_since = now
            standing.num_cached = 0
            standing.served = False
            self._line.add(standing)
            self._shares.add_back(standing)
        return plan

    def _rank(self, request: Request) -> int:
        tier = self._standings[request].tier
        return 0 if tier is Tier.PROMOTED else 2 if tier is Tier.UNTIMED else 1

    def _place_decodes(self, step: StepBuilder, now: float) -> list[Standing]:
        standings = self._standings
        base, _, _, per_decode, per_position = self.model.coefficients
        prompts = []
        decodes = context = 0
        limit = REACTION * self._tightest_ttft
        tightest = math.inf
        for request in step.running():
            standing = standings[request]
            length = len(request.token_ids)
            if length - request.num_computed_tokens > 1:
                prompts.append(standing)
                continue
            decodes += 1
            context += length
            num_output = length - len(request.prompt_token_ids)
            if not standing.served:
                standing.served = True
                if standing.first_token_time is None:
                    standing.first_token_time = now
            tpot = request.service_class.tpot_s
            if tpot is not None and base + per_decode + per_position * length <= tpot:
                tightest = min(tightest, tpot)
                slack = standing.first_token_time + num_output * tpot * HEADROOM - now
                limit = min(limit, max(slack, LOW * tpot), HIGH * tpot)
            step.compute(request, 1)
        self._fixed = base + per_decode * decodes + per_position * context
        self._room = max(limit - self._fixed, MIN_SHARE * self._fixed)
        self._tightest_tpot = tightest
        return [s for s in prompts if s.request in self._queues.running] if step.num_evicted else prompts

    def _finish(self, now: float, work: float) -> float:
        full, rest = divmod(work, self._room)
        return now + full * (self._fixed + self._room) + self._fixed + rest

    def _seconds(self, standing: Standing) -> float:
        return self.model.prompt_seconds(standing.first_pending, standing.num_pending)

    def _triage(self, prompts: list[Standing], now: float) -> None:
        if now < self._next_triage:
            return
        self._next_triage = now + TRIAGE_EVERY
        candidates = []
        for s in self._line.unsettled():
            if self._finish(now, self._seconds(s)) > s.deadline:
                self._line.move(s, Tier.LATE)
            else:
                candidates.append(s)
        running = set()
        for s in prompts:
            if Tier.CHOSEN <= s.tier <= Tier.LATE:
                if self._finish(now, self._seconds(s)) > s.deadline:
                    s.tier = Tier.LATE
                else:
                    candidates.append(s)
                    running.add(s)
        if running:
            candidates.sort(key=lambda s: (s.deadline, s.age))
        out = left_out(candidates, self._seconds, lambda work: self._finish(now, work))
        for s in candidates:
            tier = Tier.LEFT_OUT if s in out else Tier.CHOSEN
            if s in running:
                s.tier = tier
            else:
                self._line.move(s, tier)

    def _place_prompts(self, step: StepBuilder, prompts: list[Standing]) -> None:
        room = self._room
        for standing in self._in_order(step, prompts):
            request = standing.request
            first, pending = request.num_computed_tokens, request.num_pending_tokens
            fits = min(pending, step.tokens_left, self.model.prompt_tokens_within(room, first))
            if fits < min(pending, MIN_CHUNK):
                if step.num_placed:
                    break
                fits = min(pending, MIN_CHUNK, step.tokens_left)
            room -= self.model.prompt_seconds(first, fits)
            self._num_prompt_tokens += fits
            step.compute(request, fits)
            if step.tokens_left == 0:
                break

    def _in_order(self, step: StepBuilder, prompts: list[Standing]) -> Iterator[Standing]:
        """Running prompts and, as there is room, waiting ones, which start when they are reached."""
        prompts.sort(key=lambda s: s.order, reverse=True)
        waiting = self._line.first()
        while prompts or waiting:
            if waiting and not (prompts and prompts[-1].order < waiting.order):
                if self._start(step, waiting):
                    self._line.discard(waiting)
                    yield waiting
                    waiting = self._line.first()
                else:
                    waiting = None
            else:
                s = prompts.pop()
                if s.request in self._queues.running:
                    yield s

    def _start(self, step: StepBuilder, standing: Standing) -> bool:
        _, _, _, per_decode, per_position = self.model.coefficients
        request = standing.request
        running = self._queues.running
        untimed = standing.tier is Tier.UNTIMED
        if running:
            after = self._fixed + per_decode + per_position * len(request.token_ids)
            tightest = min(self._tightest_tpot, request.service_class.tpot_s or math.inf)
            if after > tightest * (GATE_UNTIMED if untimed else GATE):
                return False
        if step.start(request):
            return True
        if standing.tier >= Tier.LATE:
            return False
        victims = [r for r in running if self._standings[r].tier is Tier.UNTIMED]
        victims.sort(key=lambda r: (r.num_pending_tokens == 1, r.num_computed_tokens))
        needed = blocks_for(len(request.token_ids), self.limits.block_size) + len(running)
        free = self._blocks.num_free
        slots = len(running) - self.limits.max_num_seqs + 1
        chosen = []
        for v in victims:
            if free >= needed and len(chosen) >= slots:
                break
            free += len(self._blocks.block_table(v))
            chosen.append(v)
        if free < needed or len(chosen) < slots:
            return False
        for v in chosen:
            step.preempt(v)
        return step.start(request)
