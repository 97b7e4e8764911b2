"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): moves the outliers of activations into weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tightpack.calibration.awq import mean_of_tied
from tightpack.calibration.checks import check_same_inputs, check_statistic
from tightpack.calibration.products import times_transposed

ALPHAS = tuple(step / 20 for step in range(4, 21))
"""0.20, 0.25 .. 1.00."""
# Tokens that alphas are compared on.
_TOKENS = 512


def smoothquant_scales(
    weights: Sequence[Tensor],
    absmax: Tensor,
    alpha: float = 0.5,
    *,
    tied: Tensor | None = None,
    centred: bool = False,
) -> Tensor:
    """s = absmax_x^alpha / absmax_w^(1 - alpha), float32 [inputs], for W * s and x / s.

    weights: [outputs, inputs] each, fed by one input. absmax: [inputs], of the input over calibration tokens.
    alpha: how much of the difficulty goes to the weights.
    tied: int64 [inputs], inputs of the same number get the same scale (`query_heads_of_values`), or None.
    centred: bring s to a geometric mean of 1, so that what is large for the input stays large for x / s: for
        LLM.int8, whose threshold is absolute.
    """
    inputs = check_same_inputs(weights)
    check_statistic(absmax, inputs, "absmax")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    of_weights = torch.stack([weight.to(torch.float32).abs().amax(dim=0) for weight in weights]).amax(dim=0)
    of_inputs = absmax.to(torch.float32)
    scales = of_inputs.clamp(min=1e-5) ** alpha / of_weights.clamp(min=1e-5) ** (1.0 - alpha)
    # An input that is always 0, or that no weight reads, has nothing to balance.
    scales = torch.where((of_inputs > 0) & (of_weights > 0), scales, torch.ones_like(scales))
    if tied is not None:
        scales = mean_of_tied(scales, tied)
    return scales / scales.log().mean().exp() if centred else scales


def searched_smoothquant_scales(
    weights: Sequence[Tensor],
    absmax: Tensor,
    tokens: Tensor,
    *,
    tied: Tensor | None = None,
    outlier_threshold: float | None = None,
) -> Tensor:
    """`smoothquant_scales` with the alpha of ALPHAS whose W8A8 outputs are nearest, in squared error.

    Sites of one model differ: on SmolLM2 the best alphas go from .5 (the attention's input) to .95, and
    choosing took a third off the divergence that .5 has everywhere. AWQ chooses its exponent likewise.

    tokens: [..., inputs], some of the calibration inputs; at most 512, evenly spread, are looked at.
    outlier_threshold: of LLM.int8: entries of x / s that reach it stay exact, and s is centred.
    """
    rows = tokens.reshape(-1, tokens.shape[-1]).to(torch.float32)
    rows = rows[:: max(1, len(rows) // _TOKENS)]
    stacked = torch.cat([weight.to(torch.float32) for weight in weights])
    exact = times_transposed(rows, stacked)
    best, least = None, float("inf")
    for alpha in ALPHAS:
        scales = smoothquant_scales(weights, absmax, alpha, tied=tied, centred=outlier_threshold is not None)
        made = times_transposed(_rounded(rows / scales, outlier_threshold), _rounded(stacked * scales))
        error = float(made.sub_(exact).square_().sum(dtype=torch.float64))
        if error < least:
            best, least = scales, error
    if best is None:
        raise ValueError("no alpha gives finite outputs")
    return best


def _rounded(rows: Tensor, threshold: float | None = None) -> Tensor:
    """Each row to its 255 int8 values, but for entries from `threshold` on."""
    if threshold is None:
        steps = (rows.abs().amax(dim=1, keepdim=True) / 127.0).clamp(min=1e-30)
        return (rows / steps).round_().mul_(steps)
    outliers = rows.abs() >= threshold
    return torch.where(outliers, rows, _rounded(rows.masked_fill(outliers, 0.0)))
