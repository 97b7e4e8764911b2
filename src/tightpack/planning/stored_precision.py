"""What a config.json says of weights that are quantized already, as bits and arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tightpack.simulated.hardware import Precision


def stored_precision(config: Mapping[str, Any]) -> Precision | None:
    """None for a checkpoint that is not quantized. Raises ValueError for a method that is not known here."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return None
    method = quantization.get("quant_method")
    if method in ("awq", "gptq"):
        return _groups(method, int(quantization.get("bits", 4)), int(quantization.get("group_size", 128)))
    if method == "fp8":
        return Precision(name="fp8", weight_bits=8, arithmetic="fp8")
    if method == "bitsandbytes" and quantization.get("load_in_8bit"):
        return Precision(name="llm.int8", weight_bits=8, arithmetic="int8")
    if method == "compressed-tensors":
        return _compressed_tensors(quantization)
    raise ValueError(
        f"the checkpoint is quantized by {method!r}, of which a plan knows no sizes; known are awq, gptq, "
        "fp8, bitsandbytes in 8 bits and compressed-tensors. Give the original model instead"
    )


def _compressed_tensors(quantization: Mapping[str, Any]) -> Precision:
    """The first group of linears stands for all: mixed checkpoints are off by their share of others."""
    groups = quantization.get("config_groups") or {}
    group: Mapping[str, Any] = next(iter(groups.values()), {})
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    bits = int(weights.get("num_bits", 16))
    if weights.get("type") == "float":
        return Precision(name="fp8", weight_bits=bits, arithmetic="fp8" if inputs else "bf16")
    if inputs:
        return Precision(name="w8a8", weight_bits=bits, arithmetic="int8")
    return _groups(f"int{bits}", bits, int(weights.get("group_size") or -1))


def _groups(name: str, bits: int, group_size: int) -> Precision:
    # A 16-bit scale and a zero-point as wide as a weight for each group; one for a whole channel is nothing.
    shared = (16 + bits) / group_size if group_size > 0 else 0
    return Precision(name=name, weight_bits=bits + shared)
