"""A quantized linear as a function of tensors: the serving decoder's own layer, over any leading
dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.calibration.layer_walk import Apply
from tightpack.schemes.quantized import QuantizedLinear
from tightpack.torch_backend.quantized_weights import build_linear
from tightpack.torch_backend.rotary import interleave_heads


def applied_linear(
    linear: QuantizedLinear,
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    head_dim: int | None = None,
) -> Apply:
    """y = round(x) W^T + b over the last dimension, activations rounded as the linear says.

    head_dim: of queries and keys, whose outputs come in the order of `rotary.pair_order`; None for others.
    """

    def order(rows: Tensor) -> Tensor:
        return rows if head_dim is None else interleave_heads(rows, head_dim)

    added = None if bias is None else order(bias).to(device, dtype)
    layer = build_linear([linear], [order], added, dtype=dtype, device=device)

    def apply(x: Tensor) -> Tensor:
        out: Tensor = layer(x.reshape(-1, x.shape[-1]))
        return out.view(*x.shape[:-1], -1)

    return apply
