"""How long a step may take, so that those who decode keep the time per output token they were promised."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tightpack.requests.request import Request
from tightpack.scheduling.standing import Standing
from tightpack.scheduling.step_time import StepTimeModel

# Decodes aim at this share of their TPOT target: the rest pays for steps that take longer than predicted.
_AIM = 0.9
# One that is behind its pace asks for steps of so many targets, which lets it catch up without stopping the
# prompts; one that is ahead allows no longer ones than so many targets, and no longer gap between its tokens.
_BEHIND, _AHEAD = 0.8, 1.5
# Where no decode sets the time, a step ends within this share of the tightest TTFT target, for who may come.
_REACTION = 0.2
# Prompts go on, if slowly, where the decodes alone take all the time that there is: at least so much of it.
_LEAST_ROOM = 0.1
# What the average over steps of the prompts' share moves by a step.
_SMOOTHING = 0.05


@dataclass(slots=True)
class Pace:
    """The time of the step that is being planned.

    fixed_s: what it takes without prompts.
    room_s: what prompts may add.
    tightest_tpot: the smallest TPOT target of those who decode and of which it can be kept; else infinite.
    stretch: seconds that pass while a second's worth of prompts is computed: the others have their part too.
    """

    model: StepTimeModel
    fixed_s: float = 0.0
    room_s: float = 0.0
    tightest_tpot: float = math.inf
    stretch: float = 1.0

    def set(self, decoding: list[Standing], now: float, tightest_ttft: float) -> None:
        """Take the measure of the requests that decode in this step."""
        base, _, _, per_decode, per_position = self.model.coefficients
        alone = base + per_decode
        context = 0
        longest = _REACTION * tightest_ttft
        tightest = math.inf
        for standing in decoding:
            request = standing.request
            length = len(request.token_ids)
            context += length
            tpot = request.service_class.tpot_s
            # A target that could not be kept alone on this machine binds nobody.
            if tpot is None or alone + per_position * length > tpot:
                continue
            if tpot < tightest:
                tightest = tpot
            first = standing.first_token_time
            if first is not None:
                slack = first + (length - len(request.prompt_token_ids)) * tpot * _AIM - now
                allowed = min(max(slack, _BEHIND * tpot), _AHEAD * tpot)
                if allowed < longest:
                    longest = allowed
        self.fixed_s = base + per_decode * len(decoding) + per_position * context
        self.room_s = max(longest - self.fixed_s, _LEAST_ROOM * self.fixed_s)
        self.tightest_tpot = tightest
        self.stretch += _SMOOTHING * (1 + self.fixed_s / self.room_s - self.stretch)

    def decode_seconds(self, request: Request) -> float:
        """What a request's decode adds to a step."""
        _, _, _, per_decode, per_position = self.model.coefficients
        return per_decode + per_position * len(request.token_ids)

    def excess(self, request: Request, share: float) -> float:
        """Seconds by which the decodes alone, with `request` among them, would exceed the time they have.

        That is `share` of the tightest TPOT target among them, of those that can be kept.
        """
        more = self.decode_seconds(request)
        tightest = self.tightest_tpot
        tpot = request.service_class.tpot_s
        if tpot is not None and self.model.coefficients[0] + more <= tpot:
            tightest = min(tightest, tpot)
        return self.fixed_s + more - share * tightest

    def seconds(self, standing: Standing) -> float:
        """What the rest of a prompt adds to the steps that compute it."""
        first = standing.first_pending
        return self.model.prompt_seconds(first, len(standing.request.token_ids) - first)
