"""Which arithmetic a linear runs in: how its weight is kept, and how the rows it reads are rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tightpack.schemes.quantized import (
    ActivationFormat,
    DenseWeight,
    Fp8Weight,
    IntWeight,
    QuantizedLinear,
)

# Inputs that share a scale where the checkpoint leaves that open: the KL divergence that int8 inputs add to
# SmolLM2 was .032 with a scale a token, .005 at 64 and .002 at 32, where 32 costs a tenth of the speed.
_LARGEST_GROUP = 64
# Codes that a kernel takes at a time, hence what divides groups.
_STEP = 8


@dataclass(frozen=True, slots=True)
class RowRounding:
    """The fields of `_native.RowFormat`, with their meaning; linears with equal ones read the same rows."""

    codes: Literal["int8", "bf16"]
    width: int
    group: int = 0
    fp8: bool = False
    static_scale: float = 0.0
    steps: int = 254
    outlier_threshold: float = 0.0
    weight_offset: int = 0

    @property
    def in_words(self) -> str:
        """ "bf16", "int8 in groups of 64", "fp8 by token", "int8 with a static scale"."""
        name = "fp8" if self.fp8 else self.codes
        if self.static_scale:
            return f"{name} with a static scale"
        if self.group == 0:
            return name
        words = f"{name} by token" if self.group == self.width else f"{name} in groups of {self.group}"
        return f"{words} below {self.outlier_threshold:g}" if self.outlier_threshold else words


def row_rounding(linear: QuantizedLinear, activation_dtype: str) -> RowRounding:
    """How the input of a linear is rounded: as the checkpoint says, and where it says nothing, int8 for
    integer weights (bfloat16 if `activation_dtype` is "bfloat16" and neither "auto" nor "int8"), bfloat16 for
    others.

    Raises ValueError for int8 inputs of weights that are no integers.
    """
    weight, activation = linear.weight, linear.activation
    width = weight.shape[1]
    if isinstance(weight, IntWeight) and (activation is None or activation.precision == "int8"):
        grid = IntegerGrid(weight.bits, weight.group_size, weight.symmetric)
        return beside_integers(width, grid, activation, activation_dtype)
    if activation is None:
        return RowRounding("bf16", width)
    if activation.precision == "int8":
        raise ValueError("int8 activations need integer weights in the native executor")
    group = activation.group_size if activation.per == "group" and activation.scale is None else None
    return RowRounding("bf16", width, group or width, fp8=True, static_scale=activation.scale or 0.0)


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """What rows must know of integer weights. symmetric: without zero-points and minimums."""

    bits: int
    group_size: int
    symmetric: bool


def beside_integers(
    width: int,
    grid: IntegerGrid,
    activation: ActivationFormat | None,
    activation_dtype: str,
) -> RowRounding:
    """`row_rounding` for integer weights over `width` inputs."""
    if activation is None and activation_dtype == "bfloat16":
        return RowRounding("bf16", width)
    offset = (8 if grid.bits == 4 else 128) if grid.symmetric else 0
    if activation is None:
        return RowRounding("int8", width, row_group(width, grid.group_size), weight_offset=offset)
    wanted = activation.group_size if activation.per == "group" else None
    group = wanted or width
    if grid.group_size < width:
        # Scales of inputs change no later than those of weights: finer than was asked for, never coarser.
        group = row_group(width, grid.group_size, wanted or _LARGEST_GROUP)
    return RowRounding(
        "int8",
        width,
        group,
        static_scale=activation.scale or 0.0,
        steps=activation.steps,
        outlier_threshold=activation.outlier_threshold or 0.0,
        weight_offset=offset,
    )


def row_group(width: int, weight_group: int, largest: int = _LARGEST_GROUP) -> int:
    """Inputs that share a scale: the most, up to `largest`, that divide the weight's groups; a whole row
    where a weight has one scale a row and nothing divides it."""
    group = min(weight_group, width)
    for size in range(min(group, largest) // _STEP * _STEP, 0, -_STEP):
        if group % size == 0:
            return size
    return width


def runs_as_integers(weight: IntWeight) -> bool:
    """Whether kernels take the codes: groups of neighbours, in whole steps. Others are dequantized."""
    if weight.group_of_input is not None:
        return False
    width = weight.shape[1]
    return weight.group_size >= width or (weight.group_size % _STEP == 0 and width % weight.group_size == 0)


def dequantized(linear: QuantizedLinear) -> QuantizedLinear:
    """The linear with its weight in float32."""
    return QuantizedLinear(DenseWeight(linear.weight.dequantize()), linear.activation)


def layout_key(linear: QuantizedLinear) -> tuple[object, ...]:
    """Linears with equal keys can lie one below the other in a packed weight."""
    weight = linear.weight
    if isinstance(weight, IntWeight):
        offsets = "zeros" if weight.zeros is not None else "minimums" if weight.minimums is not None else ""
        return ("int", weight.bits, weight.group_size, offsets)
    if isinstance(weight, Fp8Weight):
        return ("fp8", min(weight.block[1], weight.shape[1]))
    return ("dense",)
