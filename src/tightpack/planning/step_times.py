"""What single steps take on a cost model: the questions that need no simulation."""

from __future__ import annotations

from functools import lru_cache

from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.simulated.cost_model import CostModel


def decode_seconds(model: CostModel, count: int, context: int) -> float:
    """A step of `count` decodes, each of which attends to `context` positions."""
    request = _request(context)
    return model.step_seconds(StepPlan((Chunk(request, context - 1, 1, ()),) * count))


def prompt_seconds(model: CostModel, length: int, budget: int | None = None) -> float:
    """A prompt alone on the machine, in steps of at most `budget` tokens."""
    request = _request(length)
    step = length if budget is None else budget
    return sum(
        model.step_seconds(StepPlan((Chunk(request, first, min(step, length - first), ()),)))
        for first in range(0, length, step)
    )


def mixed_seconds(model: CostModel, decodes: int, context: int, prompt_tokens: int) -> float:
    """A step of `decodes` decodes beside a chunk of a prompt that goes on."""
    chunks = [Chunk(_request(context), context - 1, 1, ())] * decodes
    if prompt_tokens > 0:
        chunks.append(Chunk(_request(prompt_tokens + 1), 0, prompt_tokens, ()))
    return model.step_seconds(StepPlan(tuple(chunks)))


def seconds_a_prompt_token(model: CostModel, length: int) -> float:
    """What one more prompt token costs a machine that is busy: weights are read for others anyway."""
    return (prompt_seconds(model, 2 * length) - prompt_seconds(model, length)) / length


def seconds_an_output_token(model: CostModel, context: int) -> float:
    """What one more decode costs a machine that is busy: its arithmetic and its own keys and values."""
    return (decode_seconds(model, 2 * _MANY, context) - decode_seconds(model, _MANY, context)) / _MANY


# Beyond this many rows every linear is bound by arithmetic on every device of the catalogue.
_MANY = 2048


@lru_cache(maxsize=64)
def _request(length: int) -> Request:
    return Request(
        request_id=str(length),
        prompt_token_ids=(0,) * max(1, length),
        params=SamplingParams(temperature=0, max_tokens=1),
        seed=0,
        max_output_tokens=1,
    )
