"""Static scales of a quantized KV cache, one a layer for keys and one for values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tightpack.calibration.checks import check_finite
from tightpack.schemes.quantized import KVCacheFormat

LARGEST_CODE = {"fp8": 448.0, "int8": 127.0}


class MagnitudeRange:
    """The largest magnitude of the keys or values of one layer, or a percentile of the magnitudes.

    percentile: 100 for the largest; below it, the mean over batches of each batch's percentile, so that one
        far outlier does not coarsen every other element.
    """

    def __init__(self, percentile: float = 100.0) -> None:
        if not 0.0 < percentile <= 100.0:
            raise ValueError(f"percentile must be above 0 and at most 100, got {percentile}")
        self._percentile = percentile
        self._largest = 0.0
        self._sum = 0.0
        self._count = 0

    def add(self, values: Tensor) -> None:
        """Counts `values` of any shape; ValueError if they hold NaN or infinity."""
        if not values.numel():
            return
        check_finite(values, "keys or values")
        magnitudes = values.detach().to(torch.float32).abs().reshape(-1)
        if self._percentile == 100.0:
            self._largest = max(self._largest, float(magnitudes.max()))
        else:
            # torch.quantile refuses more than 16 million elements.
            rank = max(1, round(self._percentile / 100.0 * magnitudes.numel()))
            self._sum += float(magnitudes.kthvalue(rank).values) * magnitudes.numel()
        self._count += magnitudes.numel()

    @property
    def magnitude(self) -> float:
        if not self._count:
            raise ValueError("no keys or values were seen")
        return self._largest if self._percentile == 100.0 else self._sum / self._count


def kv_scale(magnitude: float, precision: Literal["fp8", "int8"]) -> float:
    """The scale that gives `magnitude` the largest code: 448 of fp8, 127 of int8; 1 for an empty range."""
    if not 0.0 <= magnitude < float("inf"):
        raise ValueError(f"the magnitude of keys or values must be finite, got {magnitude}")
    return magnitude / LARGEST_CODE[precision] if magnitude else 1.0


def kv_cache_format(
    keys: Sequence[MagnitudeRange], values: Sequence[MagnitudeRange], precision: Literal["fp8", "int8"]
) -> KVCacheFormat:
    """From the ranges of every layer, in order."""
    return KVCacheFormat(
        precision=precision,
        key_scales=tuple(kv_scale(one.magnitude, precision) for one in keys),
        value_scales=tuple(kv_scale(one.magnitude, precision) for one in values),
    )
