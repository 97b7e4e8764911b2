"""In which order prompts are served, as time passes and requests come and go."""

from __future__ import annotations

import math
from itertools import chain

from tightpack.scheduling.fair_share import FairShares
from tightpack.scheduling.pace import Pace
from tightpack.scheduling.standing import Standing, Tier, WaitingLine
from tightpack.scheduling.triage import left_out

# Seconds between triages. Deadlines move on by milliseconds, and a long queue takes one to look through.
_TRIAGE_EVERY = 0.02
# Prompts aim to be done before their deadline by this share of the tightest TTFT target.
_MARGIN = 0.05


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

    def triage(self, under_way: list[Standing], now: float, tightest_ttft: float) -> None:
        """Find out anew whose deadlines can be made: those of the line, and of prompts under way."""
        if now < self._next_triage:
            return
        self._next_triage = now + _TRIAGE_EVERY
        pace = self._pace
        at_stake = [s for s in under_way if Tier.CHOSEN <= s.tier <= Tier.LATE]
        hopeful = []
        for standing in chain(self.line.unsettled(), at_stake):
            if standing.first_token_time is not None:
                continue  # it decoded before it was preempted: its place is in front
            if now + pace.fixed_s + pace.seconds(standing) > standing.deadline:
                self._set_tier(standing, Tier.LATE)
            else:
                hopeful.append(standing)
        hopeful.sort(key=lambda standing: standing.order[1:])
        margin = _MARGIN * tightest_ttft
        out = left_out(hopeful, pace.seconds, lambda work: pace.finish(now, work) + margin)
        for standing in hopeful:
            self._set_tier(standing, Tier.LEFT_OUT if standing in out else Tier.CHOSEN)

    def _set_tier(self, standing: Standing, tier: Tier) -> None:
        if standing.waiting:
            self.line.move(standing, tier)
        else:
            standing.tier = tier
