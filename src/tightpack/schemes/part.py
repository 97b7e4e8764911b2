"""A part of a linear: some of its outputs, or of its inputs, cut from the numbers or from what is stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightpack.schemes.layout import LinearLayout, Shape
from tightpack.schemes.quantized import DenseWeight, Fp8Weight, IntWeight, QuantizedLinear

Span = tuple[int, int]
# Where the group of each input is listed.
_GROUP_LISTS = ("g_idx", "weight_g_idx")


@dataclass(frozen=True, slots=True)
class Part:
    """rows: outputs [first, end). columns: inputs [first, end). None: all of them."""

    rows: Span | None = None
    columns: Span | None = None

    def spans(self, shape: Shape) -> tuple[Span, Span]:
        return self.rows or (0, shape[0]), self.columns or (0, shape[1])

    def shape(self, shape: Shape) -> Shape:
        (first_row, end_row), (first, end) = self.spans(shape)
        return end_row - first_row, end - first


def grain_of(linear: QuantizedLinear) -> tuple[int, int]:
    """Outputs and inputs of which a cut is best a multiple: it divides no group and no block of scales."""
    weight = linear.weight
    if isinstance(weight, IntWeight):
        if weight.group_of_input is not None or weight.group_size >= weight.shape[1]:
            return 1, 1
        return 1, weight.group_size
    if isinstance(weight, Fp8Weight):
        outputs, inputs = weight.shape
        rows, columns = weight.block
        return (1 if rows >= outputs else rows), (1 if columns >= inputs else columns)
    return 1, 1


def cut(linear: QuantizedLinear, part: Part) -> QuantizedLinear:
    """The part as numbers: it dequantizes to that part of what the whole dequantizes to, wherever the cut.

    A cut inside a group lists the groups of the inputs; one inside a block of scales makes blocks smaller.
    """
    (top, bottom), (left, right) = part.spans(linear.weight.shape)
    weight = linear.weight
    if isinstance(weight, DenseWeight):
        return replace(linear, weight=DenseWeight(weight.values[top:bottom, left:right]))
    if isinstance(weight, Fp8Weight):
        return replace(linear, weight=_cut_blocks(weight, top, bottom, left, right))
    groups, order, size = slice(None), weight.group_of_input, weight.group_size
    whole = (left, right) == (0, weight.shape[1])
    if not whole and order is not None:
        order = order[left:right]
    elif not whole:
        groups = slice(left // size, -(-right // size))
        if left % size or (right % size and right != weight.shape[1]):
            order = (np.arange(left, right) // size - left // size).astype(np.int32)
    return replace(
        linear,
        weight=replace(
            weight,
            codes=weight.codes[top:bottom, left:right],
            scales=weight.scales[top:bottom, groups],
            zeros=None if weight.zeros is None else weight.zeros[top:bottom, groups],
            minimums=None if weight.minimums is None else weight.minimums[top:bottom, groups],
            group_of_input=order,
            group_size=min(size, right - left),
        ),
    )


def cut_stored(
    layout: LinearLayout,
    stored: Collection[str],
    read: Callable[[str], NDArray[Any]],
    shape: Shape,
    part: Part,
) -> dict[str, NDArray[Any]] | None:
    """The tensors, by suffix, that `layout` would store the part in, as views of those of the whole.

    stored: the suffixes that are there; read: from one to its tensor, a view of the file.
    None where the part cannot be cut out of stored words, groups and blocks: `cut` the numbers then.
    """
    spans, grain = part.spans(shape), layout.grain(shape)
    for (first, end), extent, step in zip(spans, shape, grain, strict=True):
        if first % step or (end % step and end != extent):
            return None
    (top, bottom), (left, right) = spans
    small, whole = layout.expected(part.shape(shape)), layout.expected(shape)
    # What precedes the part, and what ends with it: how far each dimension reaches there.
    before, upto = layout.expected((top or shape[0], left or shape[1])), layout.expected((bottom, right))
    tensors: dict[str, NDArray[Any]] = {}
    for suffix, wanted in whole.items():
        if suffix not in stored:
            continue
        tensor = read(suffix)
        if suffix == "weight_shape":
            if tuple(tensor.tolist()) != shape:
                return None  # unpacking the whole names it
            tensors[suffix] = np.array(part.shape(shape), tensor.dtype)
        elif suffix in _GROUP_LISTS:
            if not np.array_equal(tensor, np.arange(shape[1]) // np.count_nonzero(tensor == tensor[0])):
                return None
            tensors[suffix] = tensor[left:right] - tensor[left]
        else:
            precision = next(p for p, extents in wanted.shapes.items() if math.prod(extents) == tensor.size)
            extents = wanted.shapes[precision]
            index = tuple(
                slice(None)
                if extent == small[suffix].shapes[precision][axis]
                else slice(
                    0 if top == left == 0 else before[suffix].shapes[precision][axis],
                    upto[suffix].shapes[precision][axis],
                )
                for axis, extent in enumerate(extents)
            )
            tensors[suffix] = tensor.reshape(extents)[index]
    return tensors


def _cut_blocks(weight: Fp8Weight, top: int, bottom: int, left: int, right: int) -> Fp8Weight:
    outputs, inputs = weight.shape
    rows, scales = _cut_block_axis(weight.scales, 0, weight.block[0], (top, bottom), outputs)
    columns, scales = _cut_block_axis(scales, 1, weight.block[1], (left, right), inputs)
    return Fp8Weight(codes=weight.codes[top:bottom, left:right], scales=scales, block=(rows, columns))


def _cut_block_axis(
    scales: NDArray[np.float32], axis: int, block: int, span: Span, extent: int
) -> tuple[int, NDArray[np.float32]]:
    """The block's new extent along the axis, and the scales of the span."""
    first, end = span
    if block >= extent:
        return end - first, scales
    step = math.gcd(block, first)
    fine = np.repeat(scales, block // step, axis)
    return step, np.take(fine, np.arange(first // step, -(-end // step)), axis)
