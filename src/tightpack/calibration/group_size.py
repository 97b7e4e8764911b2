"""The group size of a model whose user named none."""

from __future__ import annotations

from collections.abc import Iterable

GROUP_SIZES = (128, 64, 32)


def default_group_size(input_widths: Iterable[int]) -> int:
    """The largest of 128, 64 and 32 that divides every linear's number of inputs; ValueError if none does."""
    widths = sorted(set(input_widths))
    if not widths:
        raise ValueError("no linear to quantize")
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    odd = next(width for width in widths if width % GROUP_SIZES[-1])
    raise ValueError(f"no group size of {GROUP_SIZES} divides every linear's inputs: one has {odd}")
