"""Matrix products of calibration, by the faster of the CPU's libraries."""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack._native import RowFormat, instruction_sets, linear, pack_dense


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


def summed_over_tokens(a: Tensor, b: Tensor) -> Tensor:
    """a b^T, float32 [rows of a, rows of b], for a and b [rows, tokens], contiguous and of `product_dtype`.

    Products of bfloat16 are exact and summed in float32, by the serving kernels: oneDNN would round each sum
    to bfloat16, and a Hessian with one direction far above the others is not positive definite any more.
    """
    if a.dtype == torch.bfloat16:
        columns = pack_dense([b.view(torch.uint16).numpy()])
        rows = RowFormat("bf16", width=a.shape[1])
        return torch.from_numpy(linear(columns, a.float().numpy(), rows, torch.get_num_threads()))
    return times_transposed(a, b)
