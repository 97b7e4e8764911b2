"""bitsandbytes' 8 bits, LLM.int8 (Dettmers et al. 2022), as transformers saves it.

weight         int8 [N, K]
SCB            fp32 [N], the largest absolute value of each row: W = weight * SCB / 127
weight_format  uint8, the order of the weight: 0 for rows as they are
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tightpack.schemes.layout import (
    LayoutError,
    LinearLayout,
    Recipe,
    Shape,
    Stored,
    floats,
    left_unconverted,
    names_of,
    refuse_unless_zero,
    scales_of,
)
from tightpack.schemes.quantized import ActivationFormat, IntWeight, QuantizedLinear

METHOD = "bitsandbytes"


@dataclass(frozen=True, slots=True)
class Bitsandbytes8Layout:
    """threshold: of outlier columns, 0 for none."""

    threshold: float

    @property
    def precision(self) -> str:
        return "int8"

    @property
    def label(self) -> str:
        return f"int8, channel, int8 activations, outliers from {self.threshold:g}"

    def expected(self, shape: Shape) -> dict[str, Stored]:
        return {
            "weight": Stored({"int8": shape}),
            "SCB": floats((shape[0],)),
            "weight_format": Stored({"uint8": ()}, optional=True),
        }

    def grain(self, shape: Shape) -> tuple[int, int]:
        return 1, 1

    def unpack(self, tensors: Mapping[str, NDArray[Any]], shape: Shape) -> QuantizedLinear:
        refuse_unless_zero("weight_format", tensors, "only rows as they are (0) are read")
        scales = scales_of("SCB", tensors["SCB"], (shape[0], 1)) / np.float32(127)
        weight = IntWeight(codes=tensors["weight"], scales=scales, zeros=None, bits=8, group_size=shape[1])
        return QuantizedLinear(
            weight, ActivationFormat(precision="int8", outlier_threshold=self.threshold or None)
        )


class Packer:
    """A `layout.Packer`: symmetric int8 by channel, activations int8 by token."""

    def __init__(self) -> None:
        self._threshold: float | None = None

    def pack(self, name: str, linear: QuantizedLinear) -> dict[str, NDArray[Any]]:
        weight, activation = linear.weight, linear.activation
        if (
            not isinstance(weight, IntWeight)
            or weight.bits != 8
            or not weight.symmetric
            or weight.group_size < weight.shape[1]
            or activation is None
            or (activation.precision, activation.per, activation.scale) != ("int8", "token", None)
        ):
            raise LayoutError("is not symmetric int8 by channel with int8 activations by token")
        threshold = activation.outlier_threshold or 0.0
        if self._threshold is None:
            self._threshold = threshold
        if self._threshold != threshold:
            raise LayoutError(
                f"has threshold {threshold:g}, others {self._threshold:g}; there is one for all"
            )
        return {
            "weight": weight.codes.astype(np.int8, copy=False),
            "SCB": weight.scales.reshape(-1) * np.float32(127),
            "weight_format": np.zeros((), np.uint8),
        }

    def config(self, unquantized: Sequence[str], kv_cache: Literal["fp8", "int8"] | None) -> dict[str, Any]:
        return {
            "quant_method": METHOD,
            "load_in_8bit": True,
            "load_in_4bit": False,
            "llm_int8_threshold": self._threshold,
            "llm_int8_skip_modules": list(unquantized) or None,
        }


def read_recipe(config: Mapping[str, Any]) -> Recipe:
    """Raises LayoutError naming the field at fault."""
    if config.get("load_in_4bit") or config.get("_load_in_4bit"):
        raise LayoutError("load_in_4bit: bitsandbytes' 4 bits are not supported; 8 are")
    if not (config.get("load_in_8bit") or config.get("_load_in_8bit")):
        raise LayoutError("load_in_8bit must be true")
    threshold = config.get("llm_int8_threshold", 6.0)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold < np.inf:
        raise LayoutError(f"llm_int8_threshold must be a number from 0, not {threshold!r}")
    layout = Bitsandbytes8Layout(float(threshold))
    given = config.get("llm_int8_skip_modules")
    # transformers leaves the head alone unless it is told what to leave alone.
    skipped = ("lm_head",) if given is None else names_of("llm_int8_skip_modules", given)

    def layout_of(names: Sequence[str]) -> LinearLayout | None:
        return None if left_unconverted(names, skipped) else layout

    return Recipe(METHOD, layout_of)
