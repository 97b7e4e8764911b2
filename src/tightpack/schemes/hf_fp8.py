"""`quant_method: fp8`: DeepSeek-V3's blocks as transformers and vLLM read them, and vLLM's scale a tensor.

    weight            float8_e4m3fn [N, K]
    weight_scale_inv  fp32 [ceil(N / rows), ceil(K / columns)]; despite the name W = weight * weight_scale_inv
    weight_scale      instead, where there are no blocks: one number
    activation_scale  one number where activations are static; input_scale beside weight_scale
Dynamic activations are rounded by token in groups of the block's columns; without blocks by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tightpack.schemes.compressed_tensors import block_scales
from tightpack.schemes.layout import (
    LayoutError,
    LinearLayout,
    Recipe,
    Shape,
    Stored,
    floats,
    fp8_codes,
    left_unconverted,
    names_of,
    one_of,
    scales_of,
)
from tightpack.schemes.quantized import ActivationFormat, Fp8Weight, QuantizedLinear

METHOD = "fp8"


@dataclass(frozen=True, slots=True)
class HfFp8Layout:
    """block: None for one scale a tensor."""

    block: tuple[int, int] | None
    static: bool

    @property
    def precision(self) -> str:
        return "fp8"

    @property
    def label(self) -> str:
        where = "tensor" if self.block is None else f"block {self.block[0]} x {self.block[1]}"
        return f"fp8, {where}, fp8 activations"

    def expected(self, shape: Shape) -> dict[str, Stored]:
        tensors = {"weight": Stored({"fp8": shape})}
        if self.block is not None:
            tensors["weight_scale_inv"] = floats(block_scales(shape, self.block))
            return tensors | ({"activation_scale": floats((1,))} if self.static else {})
        # Which of the two names there is shows in the file; `unpack` sees to it that there is one.
        for name in ("weight_scale", "weight_scale_inv"):
            tensors[name] = floats((1,), optional=True)
        for name in ("input_scale", "activation_scale") if self.static else ():
            tensors[name] = floats((1,), optional=True)
        return tensors

    def grain(self, shape: Shape) -> tuple[int, int]:
        return self.block or (1, 1)

    def unpack(self, tensors: Mapping[str, NDArray[Any]], shape: Shape) -> QuantizedLinear:
        block = self.block or shape
        name = _present("weight_scale_inv", "weight_scale", tensors)
        activation = (
            ActivationFormat(precision="fp8", per="tensor")
            if self.block is None
            else ActivationFormat(precision="fp8", per="group", group_size=self.block[1])
        )
        if self.static:
            scale = _present("activation_scale", "input_scale", tensors)
            activation = ActivationFormat(
                precision="fp8", per="tensor", scale=scales_of(scale, tensors[scale], (1,)).item()
            )
        weight = Fp8Weight(
            codes=fp8_codes("weight", tensors["weight"]),
            scales=scales_of(name, tensors[name], block_scales(shape, block)),
            block=block,
        )
        return QuantizedLinear(weight, activation)


def read_recipe(config: Mapping[str, Any]) -> Recipe:
    """Raises LayoutError naming the field at fault."""
    scheme = one_of("activation_scheme", config.get("activation_scheme", "dynamic"), ("dynamic", "static"))
    if config.get("scale_fmt", "float") not in ("float", None):
        raise LayoutError(f"scale_fmt is {config['scale_fmt']!r}; supported: 'float'")
    block = config.get("weight_block_size")
    if block is not None and (
        not isinstance(block, list | tuple)
        or len(block) != 2
        or not all(isinstance(side, int) and side > 0 for side in block)
    ):
        raise LayoutError(f"weight_block_size must be two positive numbers, not {block!r}")
    layout = HfFp8Layout(None if block is None else (block[0], block[1]), scheme == "static")
    field = "modules_to_not_convert" if config.get("modules_to_not_convert") else "ignored_layers"
    skipped = ("lm_head", *names_of(field, config.get(field)))

    def layout_of(names: Sequence[str]) -> LinearLayout | None:
        return None if left_unconverted(names, skipped) else layout

    return Recipe(METHOD, layout_of)


def _present(first: str, second: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    found = [name for name in (first, second) if name in tensors]
    if len(found) != 1:
        raise LayoutError(f"{first}: is {'there beside' if found else 'missing, and so is'} {second}")
    return found[0]
