"""Plans and models of known size for the simulator's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tightpack.architectures.model_spec import ModelSpec
from tightpack.architectures.registry import model_spec
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.plan import Chunk, StepPlan
from tightpack.simulated.fitted import AttentionCost, FittedCostModel


@pytest.fixture(scope="session")
def llama70b() -> ModelSpec:
    """Llama 3 70B's published configuration."""
    return model_spec(
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
        }
    )


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., StepPlan]:
    """(first token, token count) a chunk, each sampled after unless a third value says no."""

    def make(*chunks: tuple[int, int] | tuple[int, int, bool]) -> StepPlan:
        built = []
        for index, (first, count, *samples) in enumerate(chunks):
            length = first + count + (0 if all(samples) else 1)
            request = Request(
                request_id=str(index),
                prompt_token_ids=(1,) * length,
                params=SamplingParams(temperature=0),
                seed=0,
                max_output_tokens=1,
            )
            built.append(Chunk(request, first, count, tuple(range(length // 16 + 1))))
        return StepPlan(tuple(built))

    return make


@pytest.fixture(scope="session")
def cpu_model() -> FittedCostModel:
    """About what a 135M model takes on two CPU cores: 14 ms a step, 0.4 ms a prompt token."""
    return FittedCostModel(
        token_counts=(1, 8, 1024),
        step_s=(0.0135, 0.018, 0.44),
        sampling_s=0.0,
        sample_s=1e-4,
        decoding_s=0.0,
        decode_s=0.0,
        prompt_s=0.001,
        attention=(
            AttentionCost(
                window=None,
                decode_position_s=1e-6,
                prompt_position_s=1e-6,
                own_pair_s=3e-7,
                cached_pair_s=6e-7,
            ),
        ),
        manifest={"executor": {"backend": "torch", "device": "cpu"}},
    )


@pytest.fixture
def new_limits() -> Callable[..., SchedulerLimits]:
    def make(**changes: Any) -> SchedulerLimits:
        limits: dict[str, Any] = {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 2056,
            "max_model_len": 2048,
            "block_size": 16,
            "num_blocks": 1024,
            "enable_prefix_caching": False,
        }
        return SchedulerLimits(**(limits | changes))

    return make
