"""When a replica would give a request's first token, and at what pace the others."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

from tightpack.requests.service_class import ServiceClass
from tightpack.scheduling.step_time import pairs
from tightpack.serving_loop.load import ClassLoad, EngineLoad

_BATCHES = ("static", "dynamic")


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

    @property
    def load(self) -> ClassLoad:
        """What it adds to a queue."""
        own = max(1, self.prompt_tokens - self.cached_tokens)
        return ClassLoad(self.sequences, own, pairs(self.cached_tokens, own))


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

    Elsewhere than under `slo` all who came before are ahead. There, who has a TTFT target passes those who
    have none and those who are late already. Where it will be late itself by that, `slo` either makes it in
    time at the cost of another or puts it off for much longer: which of the two is not predicted.
    """
    unseen = list(unseen)
    everyone = _sum([*load.by_class.values(), *(one.load for one in unseen)])
    base, _, _, decode, position = load.step_seconds
    # Those ahead whose prompts are still to come decode beside it, once they have places.
    beside = min(load.max_num_seqs, everyone.requests + work.sequences)
    pace = base + decode * beside + position * (load.decode_context + work.prompt_tokens)
    if load.policy in _BATCHES:
        return Prediction(_in_batches(load, work, everyone), pace)
    ahead = everyone
    if load.policy == "slo" and work.service_class.ttft_s is not None:
        timed = (one.load for one in unseen if one.service_class.ttft_s is not None)
        ahead = _sum([load.ahead, *timed])
    return Prediction(_in_turn(load, work, ahead, under_way=everyone.requests > 0), pace)


def _in_turn(load: EngineLoad, work: Work, ahead: ClassLoad, *, under_way: bool) -> float:
    """Prompts share each step with the decodes: a step has room for `max_num_batched_tokens` less the
    decodes, and under `slo` for `prompt_room_s` seconds."""
    base, token, pair, decode, position = load.step_seconds
    fixed = base + decode * load.decodes + position * load.decode_context

    def prompt_seconds(one: ClassLoad) -> float:
        return token * one.prompt_tokens + pair * one.prompt_pairs

    def steps(one: ClassLoad) -> int:
        count = math.ceil(one.prompt_tokens / max(1, load.max_num_batched_tokens - load.decodes))
        if load.prompt_room_s:
            count = max(count, math.ceil(prompt_seconds(one) / load.prompt_room_s))
        return count

    own = work.load
    together = _sum([ahead, own])
    # A step is under way when it comes: half of one is the wait, on average.
    wait = 0.5 * fixed if under_way else 0.0
    in_turn = wait + steps(together) * fixed + prompt_seconds(together)
    excess = ahead.requests + own.requests - load.max_num_seqs
    if excess <= 0:
        return in_turn
    # While it waits for a place, the prompts ahead are computed, in the steps that the others decode in.
    until_place = max(_steps_until_places(load, excess), steps(ahead))
    for_place = until_place * fixed + prompt_seconds(ahead) + steps(own) * fixed + prompt_seconds(own)
    return max(in_turn, for_place)


def _steps_until_places(load: EngineLoad, count: int) -> float:
    """Decode steps until so many of the places taken, or to be taken by those who wait, have been left."""
    ends = list(load.ends_in_steps[: load.max_num_seqs])
    # Whoever was sent since takes the places that were free then.
    ends += [load.output_tokens] * (load.max_num_seqs - len(ends))
    heapq.heapify(ends)
    # Of a long queue, all but the last rounds through the places take what an output takes.
    rounds = max(0, count // len(ends) - 1)
    steps = 0.0
    for _ in range(count - rounds * len(ends)):
        # The place is left then, and the next in the queue has it from there on.
        steps = heapq.heapreplace(ends, ends[0] + load.output_tokens)
    return steps + rounds * load.output_tokens


def _in_batches(load: EngineLoad, work: Work, everyone: ClassLoad) -> float:
    """`static` and `dynamic`: the batch under way runs to its end, full ones that wait go before its own.

    Under `static` its own runs to the end before anything of it is seen.
    """
    base, token, pair, decode, position = load.step_seconds
    size, own = load.max_num_seqs, work.load
    waiting = everyone.requests - load.num_running
    context = load.decode_context / load.decodes if load.decodes else work.prompt_tokens
    # Of the prompts to come, some are of the batch under way, if not all of it decodes yet.
    entering = load.num_running - load.decodes
    entering_share = entering / (entering + waiting) if entering + waiting > 0 else 0.0
    prompts_s = token * everyone.prompt_tokens + pair * everyone.prompt_pairs
    waiting_s = (1 - entering_share) * prompts_s

    def decoding(steps: float, members: float) -> float:
        return steps * (base + members * (decode + position * context))

    full, place = divmod(waiting, size)
    longest = load.longest_output_tokens
    # Members end one by one: over a batch's life so many of them decode, on average.
    decoding_share = min(1.0, load.output_tokens / longest)
    wait = 0.0
    if load.num_running:
        ends = load.ends_in_steps
        share = sum(ends) / (len(ends) * ends[-1]) if ends else 1.0
        wait = decoding(ends[-1] if ends else longest, load.num_running * share)
        wait += entering_share * prompts_s
    elif full == 0 and place + own.requests < size:
        # The longer somebody has waited, the sooner the batch leaves: half the time is left, on average.
        wait = load.max_wait_s * (0.5 if waiting and load.policy == "dynamic" else 1.0)
    per_request = waiting_s / waiting if waiting else 0.0
    wait += full * (decoding(longest, size * decoding_share) + size * per_request)
    wait += base + place * per_request + token * own.prompt_tokens + pair * own.prompt_pairs
    if load.policy == "static":
        wait += decoding(longest, (place + own.requests) * decoding_share)
    return wait


def _sum(loads: Iterable[ClassLoad]) -> ClassLoad:
    requests = tokens = prompt_pairs = 0
    for one in loads:
        requests += one.requests
        tokens += one.prompt_tokens
        prompt_pairs += one.prompt_pairs
    return ClassLoad(requests, tokens, prompt_pairs)
