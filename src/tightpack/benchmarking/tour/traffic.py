"""One mixed workload for a machine of any speed: its size follows from two short measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tightpack.benchmarking.outcomes import Drive
from tightpack.benchmarking.step_records import StepRecord
from tightpack.benchmarking.workload import (
    RequestShape,
    arrive_at_once,
    arrive_poisson,
    mixed_lengths,
    shapes,
    with_classes,
)
from tightpack.latency.summary import duration
from tightpack.requests.service_class import BATCH, INTERACTIVE, ServiceClass

# People who chat, and long documents that somebody wants read some time.
_INTERACTIVE_SHARE = 0.85
_INPUT_LEN, _LONGEST_INPUT = 40, 160
_OUTPUT_LEN, _LONGEST_OUTPUT = 24, 72
_BATCH_OUTPUT = 16
# A document takes the machine so long that whoever waits for it notices; a chunk is over before they do.
_LONG_PROMPT_S = 0.4
_CHUNK_SHARE_OF_TPOT = 0.5
# More than the original's weights can serve, so that what more speed and better order buy is seen.
_OVERLOAD = 1.35
# Nobody would meet a target of a few steps' time, however requests are ordered.
_STEPS_IN_TPOT, _PROMPTS_IN_TTFT = 3, 6
_FEWEST, _MOST = 8, 600


@dataclass(frozen=True, slots=True)
class Pace:
    """What the machine does with the original weights, at its best: what else runs on it only slows it down.

    prompt_tokens_per_s: alone. decode_step_s: of a full batch.
    """

    prompt_tokens_per_s: float
    decode_step_s: float

    @classmethod
    def of(cls, alone: Sequence[StepRecord], full: Sequence[StepRecord]) -> Pace:
        """alone: steps of long prompts that came one by one. full: steps of a batch that decodes."""
        prompts = [one.prompt_tokens / one.elapsed_s for one in alone if one.prompt_tokens > 1]
        decodes = [one for one in full if one.decodes and not one.prompt_tokens]
        most = max(one.decodes for one in decodes)
        step = min(one.elapsed_s for one in decodes if one.decodes == most)
        return cls(max(prompts), step)


@dataclass(frozen=True, slots=True)
class Size:
    """What is made to measure.

    interactive: the class of those who chat, with targets that this machine can meet.
    long_prompt: tokens of a batch request's prompt. chunk: `max_num_batched_tokens` of chunked prefill.
    """

    interactive: ServiceClass
    long_prompt: int
    chunk: int

    @classmethod
    def of(cls, pace: Pace, *, max_num_seqs: int, max_model_len: int) -> Size:
        ttft_s = _at_least(INTERACTIVE.ttft_s, _PROMPTS_IN_TTFT * _INPUT_LEN / pace.prompt_tokens_per_s)
        tpot_s = _at_least(INTERACTIVE.tpot_s, _STEPS_IN_TPOT * pace.decode_step_s)
        long_prompt = int(_LONG_PROMPT_S * pace.prompt_tokens_per_s) // 16 * 16
        chunk = _CHUNK_SHARE_OF_TPOT * tpot_s * pace.prompt_tokens_per_s
        return cls(
            interactive=replace(INTERACTIVE, ttft_s=ttft_s, tpot_s=tpot_s),
            long_prompt=max(64, min(long_prompt, max_model_len // 2)),
            chunk=max(32, min(2 ** int(chunk).bit_length() // 2, 2048), 2 * max_num_seqs),
        )

    @property
    def targets_are_stretched(self) -> bool:
        """Whether this machine is too slow for the targets that the class has by default."""
        return self.interactive != INTERACTIVE


def probe_shapes(size: Size, count: int, seed: int) -> list[RequestShape]:
    """The mix, all at once: what the machine serves of it at the most."""
    return _mix(size, arrive_at_once(count), seed)


def tour_shapes(size: Size, served_per_s: float, seconds: float, seed: int) -> list[RequestShape]:
    """The mix as it arrives for so long, at more than the original's weights serve.

    served_per_s: requests of `probe_shapes` a second.
    """
    rate = tour_rate(served_per_s)
    count = max(_FEWEST, min(round(rate * seconds), _MOST))
    return _mix(size, arrive_poisson(count, rate, seed), seed)


def tour_rate(served_per_s: float) -> float:
    return float(f"{_OVERLOAD * served_per_s:.2g}")


def served_per_s(probe: Drive) -> float:
    """Requests a second of a probe."""
    return len(probe.outcomes) / duration([one.latency for one in probe.outcomes])


def describe(size: Size, count: int, rate: float) -> str:
    batch = round(count * (1 - _INTERACTIVE_SHARE))
    return (
        f"{count} requests, {rate:g} a second: {count - batch} interactive chats (about {_INPUT_LEN} tokens"
        f" in, {_OUTPUT_LEN} out) and {batch} batch documents ({size.long_prompt} in, {_BATCH_OUTPUT} out)"
    )


def _mix(size: Size, arrivals: Sequence[float], seed: int) -> list[RequestShape]:
    lengths = [
        (min(input_len, _LONGEST_INPUT), min(output_len, _LONGEST_OUTPUT))
        for input_len, output_len in mixed_lengths(len(arrivals), _INPUT_LEN, _OUTPUT_LEN, seed)
    ]
    shares = {size.interactive: _INTERACTIVE_SHARE, BATCH: 1 - _INTERACTIVE_SHARE}
    return [
        replace(one, input_len=size.long_prompt, output_len=_BATCH_OUTPUT)
        if one.service_class == BATCH
        else one
        for one in with_classes(shapes(lengths, arrivals), shares, seed)
    ]


def _at_least(target: float | None, seconds: float) -> float:
    """Two digits of a stretched target are enough."""
    given = target or 0.0
    return given if seconds <= given else float(f"{seconds:.2g}")
