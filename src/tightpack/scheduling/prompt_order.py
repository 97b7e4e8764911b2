"""In which order prompts are served, as time passes and requests come and go."""

from __future__ import annotations

import math
from itertools import chain

from tightpack.scheduling.fair_share import FairShares
from tightpack.scheduling.forecast import Forecast
from tightpack.scheduling.pace import Pace
from tightpack.scheduling.standing import Standing, Tier, WaitingLine, by_deadline
from tightpack.scheduling.triage import all_in_time, left_out

# Seconds between triages. Deadlines move on by milliseconds, and a long queue takes one to look through.
_TRIAGE_EVERY = 0.03


class PromptOrder:
    """The line of those who wait, and the tiers of those whose prompts are under way."""

    def __init__(self, pace: Pace) -> None:
        self.line = WaitingLine()
        self._pace = pace
        self._shares = FairShares()
        self._next_triage = -math.inf

    def add(self, standing: Standing) -> None:
        """A request arrived."""
        self.line.add(standing)
        self._shares.add(standing)

    def start(self, standing: Standing) -> None:
        """It runs from now on."""
        self.line.discard(standing)
        standing.waiting = False

    def put_back(self, standing: Standing, now: float) -> None:
        """It was preempted, and waits."""
        standing.waiting, standing.served = True, False
        standing.waits_since = now
        self.line.add(standing)
        self._shares.add_back(standing)

    def end(self, standing: Standing) -> None:
        """It ended or was dropped."""
        standing.served = True
        if standing.waiting:
            self.line.discard(standing)

    def promote(self, now: float, num_prompt_tokens: int) -> None:
        """Let those go first whom their class owes it, `num_prompt_tokens` after the last call."""
        for standing in self._shares.due(now, num_prompt_tokens):
            self._set_tier(standing, Tier.PROMOTED)

    def triage(self, under_way: list[Standing], now: float, gap_s: float) -> None:
        """Find out anew whose deadlines can be made: those of the line, and of prompts under way.

        Nobody is given up for lost while it could be in time if it went first: who is, goes behind everybody
        else.

        gap_s: of `Forecast`.
        """
        if now < self._next_triage:
            return
        self._next_triage = now + _TRIAGE_EVERY
        pace = self._pace
        at_stake = [s for s in under_way if Tier.CHOSEN <= s.tier <= Tier.LATE]
        soonest = now + pace.fixed_s
        prompt_seconds = pace.model.prompt_seconds
        needs: dict[Standing, float] = {}  # of those who may still make it
        for standing in chain(self.line.unsettled(), at_stake):
            if standing.first_token_time is not None:
                continue  # it decoded before it was preempted: its place is in front
            request = standing.request  # `pace.seconds`, written out: hundreds may stand here
            first = standing.num_cached if standing.waiting else request.num_computed_tokens
            seconds = prompt_seconds(first, len(request.token_ids) - first)
            if soonest + seconds > standing.deadline:
                self._set_tier(standing, Tier.LATE)
            else:
                needs[standing] = seconds
        forecast = Forecast(pace, now, sum(needs.values()), gap_s)
        order = sorted(needs, key=by_deadline)
        out: set[Standing] = set()
        if not all_in_time(order, needs.__getitem__, forecast.finish):
            # Without a margin, whoever is served then would be in time or late by a hair.
            out = left_out(
                order, needs.__getitem__, forecast.finish, lambda s: s.aim if s.waiting else s.deadline
            )
        for standing in needs:
            tier = Tier.LEFT_OUT if standing in out else Tier.CHOSEN
            if standing.tier is not tier:
                self._set_tier(standing, tier)

    def _set_tier(self, standing: Standing, tier: Tier) -> None:
        if standing.waiting:
            self.line.move(standing, tier)
        else:
            standing.tier = tier
