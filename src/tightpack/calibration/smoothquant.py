"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): moves the outliers of activations into weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tightpack.calibration.awq import mean_of_tied
from tightpack.calibration.checks import check_same_inputs, check_statistic


def smoothquant_scales(
    weights: Sequence[Tensor],
    absmax: Tensor,
    alpha: float = 0.5,
    *,
    tied: Tensor | None = None,
) -> Tensor:
    """s = absmax_x^alpha / absmax_w^(1 - alpha), float32 [inputs], for W * s and x / s.

    weights: [outputs, inputs] each, fed by one input. absmax: [inputs], of the input over calibration tokens.
    alpha: how much of the difficulty goes to the weights.
    tied: int64 [inputs], inputs of the same number get the same scale (`query_heads_of_values`), or None.
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
    return scales if tied is None else mean_of_tied(scales, tied)
