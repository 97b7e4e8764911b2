"""How many requests a second a machine could serve at the very most, whatever the policy."""

from __future__ import annotations

from collections.abc import Iterable

from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.simulated.cost_model import CostModel

_GREEDY = SamplingParams(temperature=0)


def compute_ceiling(cost_model: CostModel, lengths: Iterable[tuple[int, int]]) -> float:
    """Requests a second, for requests of these (prompt, output) tokens in equal numbers.

    All prompts whole, and all decodes, go in one step: so weights are read once and a step's fixed time comes
    once, for all of them. No order of the work can be faster, and every real one keeps some distance: steps
    that fit into a time per output token are smaller, and requests come unevenly. A decode is taken at half
    of its output. Prefix caching is left out.
    """
    chunks: list[Chunk] = []
    count = 0
    for input_len, output_len in lengths:
        count += 1
        chunks.append(_chunk(0, input_len))
        halfway = input_len + output_len // 2
        chunks += [_chunk(halfway - 1, 1)] * (output_len - 1)
    if not count:
        raise ValueError("a ceiling needs 1 request at least")
    return count / cost_model.step_seconds(StepPlan(tuple(chunks)))


def _chunk(first_token: int, num_tokens: int) -> Chunk:
    request = Request(
        request_id="any",
        prompt_token_ids=(0,) * (first_token + num_tokens),
        params=_GREEDY,
        seed=0,
        max_output_tokens=1,
    )
    return Chunk(request, first_token, num_tokens, ())
