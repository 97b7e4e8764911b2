"""What a run is said to take: of a mixture every expert in memory, and in time those that a token takes; what
no text makes longer; sensitivities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tightpack.architectures.model_spec import ExpertsSpec, LayerSpec, ModelSpec, RotarySpec
from tightpack.calibration import estimate as module
from tightpack.calibration.config import QuantizationConfig, resolve
from tightpack.calibration.estimate import Estimate, estimate

ROTARY = RotarySpec(tuple(10000 ** (-i / 32) for i in range(32)))
DENSE = ModelSpec(
    family="x",
    vocab_size=1000,
    hidden_size=512,
    intermediate_size=1024,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    layers=(LayerSpec(ROTARY),) * 4,
    norm_eps=1e-6,
    attention_scale=0.125,
    max_position_embeddings=2048,
)


def mixture(count: int, taken: int) -> ModelSpec:
    """The first layer is a plain MLP, as in some Qwen3 mixtures."""
    experts = LayerSpec(
        ROTARY, experts=ExpertsSpec(count=count, experts_per_token=taken, intermediate_size=1024)
    )
    return replace(DENSE, layers=(DENSE.layers[0], *[experts] * 3))


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_operations_per_second", lambda *_: 1e9)
    monkeypatch.setattr(module, "_passes_per_second", lambda *_: 1e30)


def of(spec: ModelSpec) -> Estimate:
    recipe = resolve(QuantizationConfig(method="rtn", group_size=64), spec)
    return estimate(spec, recipe, 4, torch.float32, torch.device("cpu"))


def test_time_follows_the_experts_that_a_token_takes() -> None:
    one, two, all_four = of(mixture(4, 1)), of(mixture(4, 2)), of(mixture(4, 4))
    assert two.seconds - one.seconds == pytest.approx((all_four.seconds - one.seconds) / 3)
    # One expert of a layer's width costs what the plain MLP does, and the router next to nothing.
    assert one.seconds == pytest.approx(of(DENSE).seconds, rel=0.01)


def test_memory_and_disk_hold_every_expert() -> None:
    few, many = of(mixture(64, 2)), of(mixture(128, 2))
    added = 64 * 3 * 1024 * 512
    routers = 64 * 512
    assert many.memory_bytes - few.memory_bytes == 16 * (added + routers)
    assert many.disk_bytes - few.disk_bytes == 3 * 2 * (added + routers)


def seconds(**config: Any) -> float:
    recipe = resolve(QuantizationConfig(group_size=64, sequence_length=256, **config), DENSE)
    return estimate(DENSE, recipe, 1, torch.float32, torch.device("cpu")).seconds


def test_methods_that_solve_take_their_time_at_any_length_of_text() -> None:
    rounded, searched, solved, both = (
        seconds(method=method, bits=4, samples=1) for method in ("rtn", "gptq", "awq", "awq-gptq")
    )
    assert rounded < searched < solved < both
    longer = [seconds(method=method, bits=4, samples=2) for method in ("awq", "awq-gptq")]
    assert longer[1] - longer[0] == pytest.approx(both - solved)


def test_a_mix_adds_what_its_sensitivities_take() -> None:
    """Four variants a layer go through what is left of the model, with 1,024 tokens at the most."""

    def added(samples: int) -> float:
        mixed = seconds(method="gptq", samples=samples, mixed=True, max_kl=0.1)
        return mixed - seconds(method="gptq", samples=samples)

    weights = 4 * (4 * 512**2 + 3 * 512 * 1024)
    assert added(4) - added(2) == pytest.approx(2 * 512 * 16 * (weights / 2 + 1000 * 512) / 1e9)
    assert added(8) == pytest.approx(added(4))
