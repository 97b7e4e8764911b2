"""When a replica would give a request's first token, and at what pace the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tightpack.requests.service_class import ServiceClass
from tightpack.scheduling.step_time import pairs
from tightpack.serving_loop.load import EngineLoad

# Decode steps that a request is taken to last where no request has ended yet.
_UNKNOWN_OUTPUT = 64


@dataclass(frozen=True, slots=True)
class Work:
    """A request as prediction sees it.

    prompt_tokens: of all its prompts. cached_tokens: those that the replica is expected to hold.
    sequences: requests of the engine that it makes (prompts times n).
    """

    service_class: ServiceClass
    prompt_tokens: int
    cached_tokens: int = 0
    sequences: int = 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """ttft_s: from now to the first token. tpot_s: seconds an output token, once it decodes."""

    ttft_s: float
    tpot_s: float

    def meets(self, service_class: ServiceClass) -> bool:
        ttft, tpot = service_class.ttft_s, service_class.tpot_s
        return (ttft is None or self.ttft_s <= ttft) and (tpot is None or self.tpot_s <= tpot)


def predict(load: EngineLoad, work: Work, unseen: Iterable[Work] = ()) -> Prediction:
    """The TTFT is the wait for a place, and then the steps that compute the prompts ahead and its own.

    load: as the replica published it last. unseen: what was sent there since, of which `load` cannot tell.

    Under `slo`, whoever has a TTFT target passes those who have none; elsewhere all who came before are
    ahead. Prompts share each step with the decodes: a step has room for `max_num_batched_tokens` less the
    decodes, and under `slo` for `prompt_room_s` seconds.
    """
    base, token, pair, decode, position = load.step_seconds
    passes = load.policy == "slo" and work.service_class.ttft_s is not None
    requests = tokens = prompt_pairs = 0
    others = 0
    for name, of_class in load.by_class.items():
        others += of_class.requests
        if not passes or name != "batch":
            requests += of_class.requests
            tokens += of_class.prompt_tokens
            prompt_pairs += of_class.prompt_pairs
    for one in unseen:
        others += one.sequences
        if not passes or one.service_class.ttft_s is not None:
            requests += one.sequences
            tokens += one.prompt_tokens - one.cached_tokens
            prompt_pairs += pairs(one.cached_tokens, one.prompt_tokens - one.cached_tokens)
    own = max(1, work.prompt_tokens - work.cached_tokens)
    own_pairs = pairs(work.cached_tokens, own)

    fixed = base + decode * load.decodes + position * load.decode_context

    def computing(tokens: int, prompt_pairs: int) -> float:
        """Seconds of the steps that compute so much of prompts."""
        prompt_s = token * tokens + pair * prompt_pairs
        steps = math.ceil(tokens / max(1, load.max_num_batched_tokens - load.decodes))
        if load.prompt_room_s:
            steps = max(steps, math.ceil(prompt_s / load.prompt_room_s))
        return steps * fixed + prompt_s

    # A step is under way when it comes: half of one is the wait, on average.
    under_way = 0.5 * fixed if others else 0.0
    excess = requests + work.sequences - load.max_num_seqs
    gap = load.departure_gap_s or _UNKNOWN_OUTPUT * fixed / load.max_num_seqs
    # While it waits for a place, the prompts ahead are computed: the two waits are one, the longer.
    for_place = excess * gap + computing(own, own_pairs) if excess > 0 else 0.0
    in_turn = under_way + computing(tokens + own, prompt_pairs + own_pairs)
    # Those ahead whose prompts are still to come decode beside it, once they have places.
    beside = min(load.max_num_seqs, others + work.sequences)
    pace = base + decode * beside + position * (load.decode_context + work.prompt_tokens)
    return Prediction(max(for_place, in_turn), pace)
