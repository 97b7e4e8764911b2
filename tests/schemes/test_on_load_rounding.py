"""Rounding in numpy against calibration/'s on tensors: the same bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from tightpack.calibration.fp8 import fp8_weight
from tightpack.calibration.llm_int8 import int8_channels
from tightpack.calibration.round_to_nearest import round_to_nearest
from tightpack.schemes import rounding

METHODS = {
    "int8": (rounding.int8_rows, int8_channels),
    "int4": (
        lambda w: rounding.int4_groups(w, 32),
        lambda w: round_to_nearest(w, bits=4, group_size=32, symmetric=False),
    ),
    "fp8": (rounding.fp8_rows, lambda w: fp8_weight(w, granularity="channel")),
}


def weights() -> np.ndarray:
    """Rows of every size, with a row and a group of zeros, subnormal rows, and one-sided groups."""
    draw = np.random.default_rng(0)
    values = draw.standard_normal((600, 256)).astype(np.float32)
    values *= np.exp2(draw.integers(-18, 6, (600, 1))).astype(np.float32)
    values[3] = 0
    values[4, :32] = 0
    values[5] = np.float32(1e-40)
    values[6] = np.abs(values[6])
    values[7] = -np.abs(values[7])
    values[8] = 1e-9
    return values


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_same_bits_as_on_tensors(method, dtype):
    in_numpy, on_tensors = METHODS[method]
    values = weights().astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    ours = in_numpy(values)
    theirs = on_tensors(torch.from_numpy(values.astype(np.float32)))
    assert ours.codes.dtype == theirs.codes.dtype
    assert np.array_equal(ours.codes.view(np.uint8), theirs.codes.view(np.uint8))
    assert np.array_equal(ours.scales, theirs.scales)
    if method == "int4":
        assert np.array_equal(ours.zeros, theirs.zeros)
        assert ours.group_size == theirs.group_size


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_rounded_is_named(method):
    values = weights()
    values[500, 7] = np.nan
    with pytest.raises(ValueError, match=r"1 of 153600 values are NaN or infinite, first at \(500, 7\)"):
        METHODS[method][0](values)


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_scales_beyond_fp16_are_refused(method):
    with pytest.raises(ValueError, match="does not fit in float16"):
        METHODS[method][0](np.full((2, 32), 1e8, np.float32))


def test_groups_must_divide_the_inputs():
    with pytest.raises(ValueError, match="group size 48 does not divide the weight's 256 inputs"):
        rounding.int4_groups(weights(), 48)
