"""From config.json's quantization_config to its recipe, by `quant_method`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tightpack.schemes import awq_gemm, bitsandbytes8, compressed_tensors_config, gptq, hf_fp8
from tightpack.schemes.layout import Recipe, one_of

METHODS: Mapping[str, Callable[[Mapping[str, Any]], Recipe]] = MappingProxyType(
    {
        "compressed-tensors": compressed_tensors_config.read_recipe,
        "awq": awq_gemm.read_recipe,
        "gptq": gptq.read_recipe,
        "fp8": hf_fp8.read_recipe,
        "bitsandbytes": bitsandbytes8.read_recipe,
    }
)


def read_recipe(config: Mapping[str, Any]) -> Recipe:
    """Raises LayoutError naming the field at fault, and the nearest method or format that is known."""
    method = config.get("quant_method")
    if method is None and "config_groups" in config:  # before the field was written
        method = "compressed-tensors"
    return METHODS[one_of("quant_method", method, METHODS)](config)
