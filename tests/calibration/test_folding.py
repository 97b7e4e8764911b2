"""Folded scales change the numbers and not the function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tightpack.calibration.awq import query_heads_of_values
from tightpack.calibration.folding import divide_rows, fold_into_norm, of_value_rows
from tightpack.calibration.layer_walk import mlp_norm
from tightpack.calibration.sites import SITES
from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.evaluation.streamed_logits import streamed_logits
from tightpack.schemes.quantized import DenseWeight, Fp8Weight, IntWeight, QuantizedLinear

SEQUENCES = np.random.default_rng(0).integers(0, 96, (2, 24))


class Changed:
    """A TensorSource with some tensors replaced."""

    def __init__(self, source: Any, changed: dict[str, Any]) -> None:
        self.source, self.changed = source, changed

    @property
    def infos(self) -> Any:
        return self.source.infos

    def read(self, name: str) -> Any:
        return self.changed[name] if name in self.changed else self.source.read(name)


def folded(checkpoint: Checkpoint) -> Checkpoint:
    """With random scales at every site of every layer."""
    spec = checkpoint.spec
    changed: dict[str, Any] = {}

    def read(name: str) -> Any:
        return (changed[name] if name in changed else checkpoint.read(name)).astype(np.float32)

    def multiply(site: Any, index: int, scales: torch.Tensor) -> None:
        for name in site.names(index):
            changed[f"{name}.weight"] = read(f"{name}.weight") * scales.numpy()

    def divide(name: str, scales: torch.Tensor) -> None:
        linear = divide_rows(QuantizedLinear(DenseWeight(read(f"{name}.weight"))), scales)
        changed[f"{name}.weight"] = linear.weight.dequantize()
        if f"{name}.bias" in spec.tensor_shapes():
            changed[f"{name}.bias"] = read(f"{name}.bias") / scales.numpy()

    torch.manual_seed(0)
    qkv, output, gate_up, down = SITES
    for index in range(spec.num_layers):
        prefix = f"model.layers.{index}."
        for site, norm in ((qkv, "input_layernorm"), (gate_up, mlp_norm(spec))):
            full = f"{prefix}{norm}.weight"
            scales = torch.rand(spec.hidden_size) * 3 + 0.3
            changed[full], exact = fold_into_norm(checkpoint.read(full), scales, spec.norm_weight_offset)
            multiply(site, index, exact)
        tied = query_heads_of_values(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        of_values = torch.rand(spec.num_kv_heads * spec.head_dim) * 3 + 0.3
        multiply(output, index, of_values[tied])
        divide(qkv.names(index)[2], of_value_rows(of_values[tied], tied))
        scales = torch.rand(spec.intermediate_size) * 3 + 0.3
        multiply(down, index, scales)
        divide(gate_up.names(index)[1], scales)
    return replace(checkpoint, tensors=Changed(checkpoint.tensors, changed))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_the_function_stays(family: str, tiny_model: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(str(tiny_model(family)))
    before = torch.stack(list(streamed_logits(checkpoint, SEQUENCES)))
    after = torch.stack(list(streamed_logits(folded(checkpoint), SEQUENCES)))
    assert float((after - before).norm() / before.norm()) < 1e-5


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_weight_of_zero_keeps_its_scale(offset: float) -> None:
    stored = np.array([0.5, -offset, -1.25, 2.0], dtype=np.float32)
    scales = torch.tensor([2.0, 3.0, 0.7, 1.9])
    rounded, exact = fold_into_norm(stored, scales, offset)
    assert exact[1] == 1
    assert rounded.dtype.name == "bfloat16"
    np.testing.assert_allclose(
        (rounded.astype(np.float64) + offset) * exact.numpy(), stored + offset, rtol=1e-6, atol=1e-7
    )


def test_rows_of_quantized_weights() -> None:
    rng = np.random.default_rng(0)
    scales = torch.from_numpy(rng.uniform(0.5, 2, 6)).float()
    codes = rng.integers(-8, 8, (6, 8)).astype(np.int8)
    stored = rng.uniform(0.01, 0.1, (6, 2)).astype(np.float16).astype(np.float32)
    weight = IntWeight(codes=codes, scales=stored, zeros=None, bits=4, group_size=4)
    divided = divide_rows(QuantizedLinear(weight), scales).weight
    np.testing.assert_array_equal(divided.scales, divided.scales.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(
        divided.dequantize(), weight.dequantize() / scales.numpy()[:, None], rtol=2**-10
    )


def test_fp8_rows_that_share_a_scale_are_refused() -> None:
    import ml_dtypes

    codes = np.ones((4, 4), dtype=ml_dtypes.float8_e4m3fn)
    weight = Fp8Weight(codes=codes, scales=np.ones((1, 1), np.float32), block=(4, 4))
    with pytest.raises(ValueError, match="share a scale"):
        divide_rows(QuantizedLinear(weight), torch.ones(4))
