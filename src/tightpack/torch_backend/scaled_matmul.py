"""Products of 8-bit floats through PyTorch's `_scaled_mm` (cuBLAS or CUTLASS), and a reference for it."""

from __future__ import annotations

import torch
from torch import Tensor

# What the library asks of both operands' inputs and of the outputs, in elements: 16 bytes.
_ALIGNMENT = 16
_HOPPER = (9, 0)


def scaled_matmul_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether `_scaled_mm` computes the product on this device; scales by row are Hopper's and later."""
    outputs, inputs = weight.shape
    return (
        x.dtype == weight.dtype == torch.float8_e4m3fn
        and x.is_cuda
        and inputs % _ALIGNMENT == outputs % _ALIGNMENT == 0
        and torch.cuda.get_device_capability(x.device) >= _HOPPER
    )


def scaled_matmul(
    x: Tensor, x_scales: Tensor, weight: Tensor, scales: Tensor, *, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(x * x_scales) (weight * scales)^T + bias in `dtype`.

    x: E4M3 [rows, inputs]; x_scales: float32 [rows, 1] or [1]; weight: E4M3 [outputs, inputs]; scales:
    float32 [outputs] or [1]. One scale for all of x and one for all of weight take the library's faster
    product. Elsewhere than on CUDA the codes are multiplied in float32.
    """
    if not scaled_matmul_takes(x, weight):
        product = x.float() @ weight.float().t()
        product = product.mul_(x_scales.view(-1, 1)).mul_(scales.view(1, -1))
        return (product if bias is None else product.add_(bias)).to(dtype)
    by_tensor = x_scales.numel() == 1 and scales.numel() == 1 and len(x) > 1
    left = x_scales.view(()) if by_tensor else x_scales.expand(len(x), 1).contiguous()
    right = scales.view(()) if by_tensor else scales.expand(len(weight)).view(1, -1).contiguous()
    # Scales by row come with bfloat16 results alone, and a bias of their type.
    wanted = torch.bfloat16
    out: Tensor = torch._scaled_mm(
        x,
        weight.t(),
        scale_a=left,
        scale_b=right,
        bias=None if bias is None else bias.to(wanted),
        out_dtype=wanted,
        use_fast_accum=True,
    )
    return out.to(dtype)
