"""Named workloads that show one thing each, with the limits under which they show it.

`tightpack bench --scenario NAME` runs one. Their loads are fixed; `tightpack demo` sizes its own to the
machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightpack.benchmarking.workload import RequestShape, arrive_poisson, mixed_lengths, shapes


@dataclass(frozen=True, slots=True)
class Scenario:
    """requests: the shapes. policies: those worth comparing on it.

    max_num_seqs, max_model_len: limits of every policy. chunk_tokens: `max_num_batched_tokens` of
    chunked-prefill; the others take whole prompts and get their default.
    """

    name: str
    description: str
    requests: tuple[RequestShape, ...]
    policies: tuple[str, ...]
    max_num_seqs: int
    max_model_len: int
    chunk_tokens: int

    def limits(self, policy: str) -> dict[str, int | None]:
        """The engine arguments of a policy in this scenario."""
        return {
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.chunk_tokens if policy == "chunked-prefill" else None,
        }


def mixed(seed: int = 0) -> Scenario:
    """Mixed lengths arriving faster than small batches are done: where the batching policy decides."""
    # More than two cores can serve; half a minute for four policies. The caps keep one long request from
    # being all of it.
    count, rate = 120, 40.0
    lengths = [
        (min(input_len, 192), min(output_len, 128))
        for input_len, output_len in mixed_lengths(count, input_len=48, output_len=40, seed=seed)
    ]
    return Scenario(
        name="mixed",
        description=f"{count} requests of mixed lengths, {rate:g} a second",
        requests=tuple(shapes(lengths, arrive_poisson(count, rate, seed))),
        policies=("static", "dynamic", "continuous", "chunked-prefill"),
        max_num_seqs=8,
        max_model_len=2048,
        chunk_tokens=64,
    )


def long_prompt(seed: int = 0) -> Scenario:
    """Requests under way when three long prompts arrive: where cutting prompts into chunks decides.

    The prompts come early, so that the others are still under way on a fast machine, and are enough for
    their gaps to be more than 1 % of all.
    """
    del seed  # nothing is drawn
    talkers = [RequestShape(0.0, 32, 96)] * 6
    readers = [RequestShape(arrival_s, 1024, 8) for arrival_s in (0.2, 0.5, 0.8)]
    return Scenario(
        name="long-prompt",
        description="6 requests under way, then 3 prompts of 1024 tokens",
        requests=(*talkers, *readers),
        policies=("continuous", "chunked-prefill"),
        max_num_seqs=9,
        max_model_len=2048,
        chunk_tokens=128,
    )


def scenarios(seed: int = 0) -> Mapping[str, Scenario]:
    """By name."""
    built: Sequence[Scenario] = (mixed(seed), long_prompt(seed))
    return {scenario.name: scenario for scenario in built}
