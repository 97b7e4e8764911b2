"""Weights that undo, as far as a linear can, what quantizing the layers before has done to its inputs.

Calibrating a linear on the quantized model's inputs x' alone asks for W x', which already is off. What is
wanted is W x, of the original's inputs x; over the calibration tokens the linear that comes nearest to it
on x' is

    W' = W + W C (H + damping)^-1,    C = mean of (x - x') x'^T,    H = mean of x' x'^T,

and rounding W' under H is then the same problem as before. Li et al. 2025 (GPTAQ, arXiv:2504.02692) set out
from the same objective, and fold it into GPTQ's updates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.calibration.checks import check_finite
from tightpack.calibration.hessian import damped
from tightpack.calibration.products import add_over_tokens, product_dtype, times_transposed


class InputGap:
    """C: how the original's inputs differ from the quantized model's, seen from the latter.

    inputs: width K. The sum is kept on `device`, float32 [K, K].
    """

    def __init__(self, inputs: int, *, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._products = torch.zeros(inputs, inputs, dtype=torch.float32, device=device)

    def add(self, made: Tensor, original: Tensor) -> None:
        """made, original: [..., K] of the same tokens, in the quantized model and in the original."""
        if made.shape != original.shape or made.shape[-1] != len(self._products):
            raise ValueError(
                f"expected two inputs of one shape and width {len(self._products)}, got "
                f"{tuple(made.shape)} and {tuple(original.shape)}"
            )
        width, device = len(self._products), self._products.device
        quantized = made.detach().reshape(-1, width).to(device)
        dtype = product_dtype(quantized)
        gap = original.detach().reshape(-1, width).to(device, quantized.dtype) - quantized
        check_finite(gap, "inputs")
        add_over_tokens(self._products, gap.to(dtype), quantized.to(dtype))
        self.count += len(gap)

    @property
    def mean(self) -> Tensor:
        """C, float32 [K, K]."""
        if not self.count:
            raise ValueError("no calibration tokens were seen")
        return self._products / self.count


def corrected_weight(
    weight: Tensor, gap: Tensor, hessian: Tensor, *, share: float = 0.5, damping: float = 0.05
) -> Tensor:
    """W + share * W C (H + damping * mean(diag H))^-1, float32 [outputs, inputs].

    gap: C, see `InputGap`; hessian: H, of the quantized model's inputs.
    share: 0 to 1; how much of the way to go. The whole of it follows the noise of the calibration text as
        well: on SmolLM2 with 12,288 tokens a share of .5 lowered GPTQ's divergence by 14 %, all by 3 %.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    weight = weight.to(torch.float32)
    if share == 0.0:
        return weight
    gap = gap.to(torch.float32)
    factor = torch.linalg.cholesky(damped(hessian, damping).to(torch.float64))
    # Of the two orders of the product the one that solves for fewer columns.
    if len(weight) > len(gap):
        solved = torch.cholesky_solve(gap.T.to(torch.float64), factor).to(torch.float32)
        return weight + share * times_transposed(weight, solved)
    wanted = times_transposed(weight, gap.T)
    change = torch.cholesky_solve(wanted.T.to(torch.float64), factor).T
    return weight + share * change.to(torch.float32)
