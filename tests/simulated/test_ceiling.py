from __future__ import annotations

import pytest

from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import StepPlan
from tightpack.serving_loop.loop import ServingLoop
from tightpack.simulated.ceiling import compute_ceiling
from tightpack.simulated.engine import make_simulated_loop
from tightpack.simulated.virtual_clock import VirtualClock


class PerToken:
    """A fixed time a step, a time a token, and a time a position that decodes read."""

    @property
    def description(self) -> dict[str, str]:
        return {"device": "formula"}

    def step_seconds(self, plan: StepPlan) -> float:
        read = sum(chunk.first_token for chunk in plan.chunks if chunk.num_tokens == 1)
        return 0.01 + 0.001 * plan.num_tokens + 1e-6 * read


def test_the_work_of_all_in_one_step() -> None:
    # Prompts of 100 and 300; 10 and 20 tokens out, of which the prompt gives the first.
    decodes = 9 * 0.001 + 19 * 0.001 + 1e-6 * (9 * 104 + 19 * 309)
    assert compute_ceiling(PerToken(), [(100, 10), (300, 20)]) == pytest.approx(2 / (0.01 + 0.4 + decodes))


def test_no_policy_is_above_it() -> None:
    lengths = [(60, 8)] * 40
    for policy in ("continuous", "chunked-prefill", "slo"):
        limits = SchedulerLimits(
            max_num_seqs=16,
            max_num_batched_tokens=160,
            max_model_len=128,
            block_size=16,
            num_blocks=200,
            enable_prefix_caching=False,
        )
        clock = VirtualClock()
        loop: ServingLoop = make_simulated_loop(PerToken(), limits, policy, clock)
        for index, (prompt, output) in enumerate(lengths):
            params = SamplingParams(temperature=0)
            loop.add(
                Request(
                    request_id=str(index),
                    prompt_token_ids=(1,) * prompt,
                    params=params,
                    seed=0,
                    max_output_tokens=output,
                )
            )
        loop.close_intake()
        while loop.has_unfinished:
            loop.step()
        assert len(lengths) / clock.now() < compute_ceiling(PerToken(), lengths)


def test_nothing_has_no_ceiling() -> None:
    with pytest.raises(ValueError, match="1 request at least"):
        compute_ceiling(PerToken(), [])
