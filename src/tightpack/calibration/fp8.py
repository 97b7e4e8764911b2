"""FP8 weights in E4M3 (Micikevicius et al. 2022, arXiv:2209.05433): largest number 448, no infinities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import ml_dtypes
import torch
from torch import Tensor

from tightpack.calibration.checks import check_weight
from tightpack.calibration.integer_grid import stored_scales
from tightpack.schemes.quantized import Fp8Weight

LARGEST = 448.0
BLOCK = 128


def saturating_fp8(values: Tensor) -> Tensor:
    """`values` as torch.float8_e4m3fn, ties to even; +-448 beyond that (where a plain cast gives NaN)."""
    return values.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def fp8_weight(
    weight: Tensor,
    *,
    granularity: Literal["tensor", "channel", "block"] = "channel",
    scale_dtype: torch.dtype = torch.float32,
) -> Fp8Weight:
    """Codes with scales of absmax / 448, of the whole matrix, of each row, or of each 128 x 128 block.

    weight: [outputs, inputs]; the last blocks may be smaller.
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
    codes = saturating_fp8(tiles / scales[:, None, :, None]).reshape(padded.shape)[:outputs, :inputs]
    return Fp8Weight(
        codes=codes.contiguous().view(torch.uint8).cpu().numpy().view(ml_dtypes.float8_e4m3fn),
        scales=scales.cpu().numpy(),
        block=(rows, columns),
    )


def choose_fp8_or_bf16(errors: Mapping[str, float], threshold: float) -> dict[str, Literal["fp8", "bf16"]]:
    """FP8 for each linear whose measured error is at or below `threshold`, BF16 for the others.

    errors: by name, in any unit (relative squared error of the output, divergence) that the threshold shares.
        One that is not a number counts as above it.
    """
    return {name: "fp8" if error <= threshold else "bf16" for name, error in errors.items()}
