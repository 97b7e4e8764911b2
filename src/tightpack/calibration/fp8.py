"""FP8 weights in E4M3 (Micikevicius et al. 2022, arXiv:2209.05433): largest number 448, no infinities."""

from __future__ import annotations

from typing import Literal

import ml_dtypes
import torch
from torch import Tensor

from tightpack.calibration.checks import check_weight
from tightpack.calibration.integer_grid import stored_scales
from tightpack.calibration.scale_search import nearest_scales
from tightpack.schemes.quantized import Fp8Weight

LARGEST = 448.0
BLOCK = 128
_FACTORS = tuple(2.0 ** (step / 16) for step in range(16))


def saturating_fp8(values: Tensor) -> Tensor:
    """`values` as torch.float8_e4m3fn, ties to even; +-448 beyond that (where a plain cast gives NaN)."""
    return values.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def fp8_weight(
    weight: Tensor,
    *,
    granularity: Literal["tensor", "channel", "block"] = "channel",
    search: bool = False,
    scale_dtype: torch.dtype = torch.float32,
) -> Fp8Weight:
    """Codes with scales of absmax / 448, of the whole matrix, of each row, or of each 128 x 128 block.

    weight: [outputs, inputs]; the last blocks may be smaller.
    search: of 16 scales from that one to nearly its double, take the one of least squared error. The steps of
        a floating grid double at each power of two: where those lie among the weights is worth a seventh of
        the squared error, and nothing saturates. On SmolLM2: a divergence lower by a fifth.
    """
    check_weight(weight)
    weight = weight.to(torch.float32)
    outputs, inputs = weight.shape
    blocks = {"tensor": (outputs, inputs), "channel": (1, inputs), "block": (BLOCK, BLOCK)}
    if granularity not in blocks:
        raise ValueError(f"granularity must be one of {', '.join(blocks)}, got {granularity!r}")
    rows, columns = blocks[granularity]
    down, across = -(-outputs // rows), -(-inputs // columns)
    padded = torch.zeros(down * rows, across * columns, device=weight.device)
    padded[:outputs, :inputs] = weight
    tiles = padded.reshape(down, rows, across, columns)
    scales = stored_scales(tiles.abs().amax(dim=(1, 3)) / LARGEST, scale_dtype)
    if search:
        by_tile = tiles.transpose(1, 2).reshape(down * across, rows * columns)
        found = nearest_scales(by_tile, scales.reshape(-1, 1), _FACTORS, _rounded)
        scales = stored_scales(found, scale_dtype).reshape(scales.shape)
    codes = saturating_fp8(tiles / scales[:, None, :, None]).reshape(padded.shape)[:outputs, :inputs]
    return Fp8Weight(
        codes=codes.contiguous().view(torch.uint8).cpu().numpy().view(ml_dtypes.float8_e4m3fn),
        scales=scales.cpu().numpy(),
        block=(rows, columns),
    )


def _rounded(values: Tensor, scales: Tensor) -> Tensor:
    return saturating_fp8(values / scales).to(torch.float32).mul_(scales)
