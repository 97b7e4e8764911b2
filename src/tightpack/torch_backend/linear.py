"""A linear layer, with the weight in the layout that the device's matrix kernels stream fastest."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class LinearLayer(Protocol):
    """Any way to compute a linear."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """x [rows, inputs] to [rows, outputs], in x's dtype."""


class Linear:
    """y = x W^T + b for x [rows, inputs], W [outputs, inputs].

    On a CPU the weight is kept in oneDNN's blocked layout, as PyTorch's own compiler keeps it. A plain bf16
    weight is re-packed on every call, which costs a third of a decoding step; a plain float32 one goes to
    another library, which takes two to four times as long on AMD processors. The layout is opaque, so a layer
    whose weight is needed as a matrix too (a tied embedding) keeps both.
    """

    __slots__ = ("_packed", "bias", "dtype", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, keep_plain: bool = False) -> None:
        self.bias = bias
        self.dtype = weight.dtype
        self._packed = _pack(weight)
        self.weight: Tensor | None = weight if self._packed is None or keep_plain else None

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
            return out
        assert self.weight is not None
        return functional.linear(x, self.weight, self.bias)


def _pack(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's layout, or None where plain is as good or the operators are not there."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.bfloat16, torch.float32):
        return None
    try:
        if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return None
        # The packing is tuned for a row count; 32 is a decode batch, and 1 and 2048 rows run as well with it.
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
    except (AttributeError, NotImplementedError):
        return None
    return packed
