from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tightpack import QuantizationConfig
from tightpack.architectures.model_spec import ModelSpec
from tightpack.calibration.config import resolve
from tightpack.calibration.sites import SITES
from tightpack.checkpoints.open import open_checkpoint


@pytest.fixture
def spec(tiny_model: Callable[[str], Path]) -> ModelSpec:
    return open_checkpoint(str(tiny_model("llama"))).spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "smoothquant", "bits": 4}, "has 8 bits, and bits=4"),
        ({"method": "fp8", "group_size": 64}, "one scale a channel, and group_size=64"),
        ({"method": "int8", "symmetric": False}, "is symmetric"),
        ({"method": "gptq", "fp8_fallback": 0.1}, "fp8_fallback belongs to method='fp8'"),
        ({"method": "fp8", "layout": "awq"}, "layout='awq' holds integer weights"),
        ({"method": "awq", "layout": "awq", "symmetric": True}, "zero points"),
        ({"method": "fp8", "target_bits": 5.0}, "target_bits mixes"),
        ({"method": "gptq", "clip": "mse"}, "belongs to method='rtn'"),
        ({"method": "gtpq"}, "did you mean 'gptq'"),
        ({"layout": "compressed"}, "did you mean 'compressed-tensors'"),
        ({"bits": 3}, "bits must be 4 or 8"),
        ({"group_size": 0}, "group_size must be"),
        ({"samples": 0}, "samples must be"),
        ({"max_kl": -1.0}, "max_kl must be above 0"),
        ({"mixed": True}, "needs an aim: target_bits or max_kl"),
        ({"mixed": False, "target_bits": 5.0}, "mixed=False was asked for"),
        ({"method": "fp8", "mixed": True, "max_kl": 0.1}, "mixed=True mixes precisions on top of"),
        ({"layout": "gptq", "mixed": True, "max_kl": 0.1}, "one scheme for all linears"),
        ({"method": "gptq", "calibrated": True}, "calibrated belongs to method='int8'"),
        ({"error_correction": 1.5}, "error_correction must be between 0 and 1"),
    ],
)
def test_contradictions(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizationConfig(**fields)


def test_unknown_fields_are_named() -> None:
    with pytest.raises(TypeError, match="did you mean 'group_size'"):
        QuantizationConfig(groupsize=64)


@pytest.mark.parametrize(
    ("fields", "mixed"),
    [
        ({"max_kl": 0.1}, True),
        ({"target_bits": 5.0}, True),
        ({"target_bits": 5.0, "max_kl": 0.1, "group_size": 32}, True),
        ({"max_kl": 0.1, "bits": 4}, False),
        ({"max_kl": 0.1, "group_size": 64}, False),
        ({"max_kl": 0.1, "group_size": 64, "mixed": True}, True),
        ({"max_kl": 0.1, "mixed": False}, False),
        ({"max_kl": 0.1, "layout": "gptq"}, False),
        ({"max_kl": 0.1, "method": "fp8"}, False),
        ({}, False),
    ],
)
def test_what_becomes_a_mix(fields: dict[str, Any], mixed: bool, spec: ModelSpec) -> None:
    assert resolve(QuantizationConfig(**fields), spec).config.mixed is mixed


def test_defaults_by_method(spec: ModelSpec) -> None:
    recipe = resolve(QuantizationConfig(method="gptq"), spec)
    assert recipe.label == "gptq, int4 g64 asymmetric"  # 64 divides the widths 64 and 128
    assert (
        resolve(QuantizationConfig(method="smoothquant"), spec).label == "smoothquant, int8, int8 activations"
    )
    assert resolve(QuantizationConfig(method="gptq", layout="gptq"), spec).label == "gptq, int4 g64"
    chosen = QuantizationConfig(method="gptq", layout="gptq", symmetric=False)
    assert resolve(chosen, spec).label == "gptq, int4 g64 asymmetric"
    assert resolve(QuantizationConfig(method="fp8"), spec).label == "fp8, fp8 activations"
    assert not resolve(QuantizationConfig(method="rtn"), spec).needs_text
    assert resolve(QuantizationConfig(method="llm.int8"), spec).needs_text
    assert resolve(QuantizationConfig(method="rtn", kv_cache_dtype="fp8"), spec).needs_text


def test_a_group_size_that_does_not_divide_names_the_tensor(spec: ModelSpec) -> None:
    with pytest.raises(
        ValueError, match=r"group_size=48 does not divide the 64 inputs of model\.layers\.0\.self"
    ):
        resolve(QuantizationConfig(method="gptq", group_size=48), spec)


def test_ignored_linears_take_their_partners_along(spec: ModelSpec) -> None:
    recipe = resolve(QuantizationConfig(ignore=("*.1.self_attn.k_proj", "re:.*layers.2.*down")), spec)
    dense = {key for key, scheme in recipe.schemes.items() if scheme.precision == "dense"}
    assert dense == {(1, "qkv"), (2, "down")}
    with pytest.raises(ValueError, match="'q_proj' matches no linear"):
        resolve(QuantizationConfig(ignore=("q_proj",)), spec)


def test_bytes_of_schemes(spec: ModelSpec) -> None:
    scheme = resolve(QuantizationConfig(method="gptq", group_size=64), spec).scheme(0, SITES[0])
    # Codes, a 16-bit scale and a 4-bit zero point for each group.
    assert scheme.num_bytes(64, 128) == 64 * 128 // 2 + 64 * 2 * 2 + 64 * 2 // 2
