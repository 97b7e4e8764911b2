"""Input Hessians H = mean of x x^T over tokens: what a change of a linear's weights costs at its output.

With an error E [outputs, inputs] in the weights, the mean over tokens of the squared error of the outputs is
trace(E H E^T): no forward pass is needed to compare two ways of rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tightpack.calibration.products import times_symmetric


def output_errors(error: Tensor, hessian: Tensor) -> Tensor:
    """e H e^T of every row of `error`.

    error: float32 [outputs, inputs], weights minus rounded weights. hessian: [inputs, inputs].
    Returns float32 [outputs]: the mean squared error of each output.
    """
    return times_symmetric(error, hessian.to(error.dtype)).mul_(error).sum(dim=1)


def group_blocks(hessian: Tensor, group_size: int) -> Tensor:
    """The blocks of `hessian` on the diagonal, float32 [groups, group_size, group_size]."""
    groups = hessian.shape[0] // group_size
    tiled = hessian.reshape(groups, group_size, groups, group_size)
    return tiled.diagonal(dim1=0, dim2=2).permute(2, 0, 1).to(torch.float32).contiguous()


def scaled_hessian(hessian: Tensor, scales: Tensor) -> Tensor:
    """The Hessian of the input divided by `scales` [inputs], as AWQ and SmoothQuant leave it."""
    return hessian / torch.outer(scales, scales).to(hessian.dtype)


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diag H) * I, float32: trusts the calibration tokens' correlations a little less.

    Inputs that are always 0 get a diagonal of 1 first: they neither take nor give any error.
    """
    result = hessian.to(torch.float32, copy=True)
    diagonal = result.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * float(diagonal.mean())
    return result


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """U, upper triangular, float64 [inputs, inputs], with U^T U = (H + damping * mean(diag H) * I)^-1.

    damping: relative to the mean of the diagonal; multiplied by 10, up to 1, as long as the factorisation
        fails (fewer tokens than inputs, or inputs that are copies of each other).
    Inputs that are always 0 get a diagonal of 1: they neither take nor give any error.
    """
    matrix = hessian.to(torch.float64, copy=True)
    diagonal = matrix.diagonal()
    diagonal[diagonal == 0] = 1.0
    mean = float(diagonal.mean())
    added = 0.0
    attempt = damping
    while True:
        diagonal += attempt * mean - added
        added = attempt * mean
        # Of the matrix turned end for end: R R^T = H with R upper triangular, so that one triangular inverse
        # gives U, and the inverse itself is never formed.
        factor, info = torch.linalg.cholesky_ex(matrix.flip(0, 1))
        if int(info) == 0 and bool(torch.isfinite(factor.diagonal()).all()):
            break
        attempt = max(attempt * 10, 1e-4)
        if attempt > 1.0:
            raise ValueError(
                "hessian is not positive semidefinite: its Cholesky factorisation fails even when damped"
            )
    identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor.flip(0, 1), identity, upper=True)
    return inverse
