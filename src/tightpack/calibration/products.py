"""Matrix products of calibration, by the faster of the CPU's libraries."""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack._native import add_token_products, instruction_sets

# Narrower strips leave out more of a symmetric half, and make products too small for two threads.
_STRIP = 288


def times_transposed(a: Tensor, b: Tensor) -> Tensor:
    """a b^T, [rows of a, rows of b], for a and b [rows, inner] of one dtype and device.

    Of float32 on a CPU by oneDNN: on AMD processors its products run at twice the rate of the library behind
    `torch.matmul` (200 GFLOP/s a core for 90 on Zen 4), and on Intel's as fast.
    """
    if a.device.type == "cpu" and a.dtype == torch.float32:
        # It has fast kernels for whole matrices, either way up, and very slow ones for strided parts.
        b = b if b.T.is_contiguous() else b.contiguous()
        try:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(a.contiguous(), b, None, "none", [], "")
        except (AttributeError, NotImplementedError):
            return a @ b.T
        return out
    return a @ b.T


def times_symmetric(a: Tensor, hessian: Tensor) -> Tensor:
    """a H, [rows, inputs], for a symmetric H [inputs, inputs]."""
    return times_transposed(a, hessian)


def has_fast_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 (AVX512-BF16), at twice the rate of float32. Others
    imitate it, slower than float32."""
    return instruction_sets()[0] == "avx512_bf16"


def product_dtype(inputs: Tensor) -> torch.dtype:
    """In which sums over tokens are multiplied: bfloat16 inputs as they are where the CPU is fast at it, all
    others in float32."""
    if inputs.device.type == "cpu" and inputs.dtype == torch.bfloat16 and has_fast_bfloat16():
        return torch.bfloat16
    return torch.float32


def add_over_tokens(sums: Tensor, left: Tensor, right: Tensor | None = None) -> None:
    """sums += left^T right; sums float32 [rows, columns], left [tokens, rows] and right [tokens, columns] of
    `product_dtype`.

    right: None for left itself. What is above the diagonal of the sums means nothing then, and is left out
        where that saves time: this is the largest part of what calibration takes.

    Products of bfloat16 are exact and summed in float32, by a kernel of ours: oneDNN would round each sum to
    bfloat16, and a Hessian with one direction far above the others is not positive definite any more.
    """
    if left.dtype == torch.bfloat16:
        bits = None if right is None else right.contiguous().view(torch.uint16).numpy()
        own = left.contiguous().view(torch.uint16).numpy()
        add_token_products(sums.numpy(), own, bits, torch.get_num_threads())
    elif right is not None:
        sums += times_transposed(left.T.contiguous(), right.T.contiguous())
    else:
        by_input, inputs = left.T.contiguous(), left.shape[1]
        # From the diagonal down in strips: a quarter less work.
        strip = max(_STRIP, inputs // 4)
        for first in range(0, inputs, strip):
            last = min(first + strip, inputs)
            sums[first:, first:last] += times_transposed(by_input[first:], by_input[first:last])
