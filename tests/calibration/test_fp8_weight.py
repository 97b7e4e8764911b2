from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from tightpack.calibration.fp8 import fp8_weight, saturating_fp8


@pytest.fixture
def uneven():
    """[200, 300]: neither a multiple of 128."""
    rng = np.random.default_rng(5)
    return torch.from_numpy(rng.standard_normal((200, 300)) * np.exp(rng.uniform(-3, 3, (200, 1)))).float()


@pytest.mark.parametrize(
    ("granularity", "block"), [("tensor", (200, 300)), ("channel", (1, 300)), ("block", (128, 128))]
)
def test_codes_and_scales_of_every_block(uneven, granularity, block):
    rounded = fp8_weight(uneven, granularity=granularity)
    assert rounded.block == block
    values = uneven.numpy()
    expected = np.zeros((200, 300), dtype=np.float32)
    for row in range(0, 200, block[0]):
        for column in range(0, 300, block[1]):
            part = np.s_[row : row + block[0], column : column + block[1]]
            scale = np.abs(values[part]).max() / np.float32(448)
            assert rounded.scales[row // block[0], column // block[1]] == scale
            codes = (values[part] / scale).astype(ml_dtypes.float8_e4m3fn)
            expected[part] = codes.astype(np.float32) * scale
    np.testing.assert_array_equal(rounded.dequantize(), expected)
    assert np.abs(rounded.codes.astype(np.float32)).max() == 448


def test_casts_saturate_at_the_largest_number():
    values = torch.tensor([1e9, -1e9, 449.0, 470.0, 448.0, 0.0])
    assert saturating_fp8(values).float().tolist() == [448.0, -448.0, 448.0, 448.0, 448.0, 0.0]


def test_scales_stored_in_sixteen_bits_never_push_a_code_to_nan(uneven):
    rounded = fp8_weight(uneven, granularity="channel", scale_dtype=torch.bfloat16)
    assert np.isfinite(rounded.dequantize()).all()
    assert (np.abs(rounded.dequantize() - uneven.numpy()) <= np.abs(uneven.numpy()) * 0.07 + 1e-4).all()


def test_a_row_of_zeros_stays_zero():
    rounded = fp8_weight(torch.zeros(2, 8), granularity="channel")
    assert (rounded.dequantize() == 0).all()


def test_what_makes_no_sense_is_refused(uneven):
    with pytest.raises(ValueError, match="granularity must be one of tensor, channel, block"):
        fp8_weight(uneven, granularity="group")
    uneven[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight: 1 of 60000"):
        fp8_weight(uneven)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
def test_the_search_finds_the_best_of_sixteen_scales(uneven, granularity):
    plain, found = (fp8_weight(uneven, granularity=granularity, search=search) for search in (False, True))
    values = uneven.numpy()
    for row in range(0, 200, plain.block[0]):
        for column in range(0, 300, plain.block[1]):
            place = row // plain.block[0], column // plain.block[1]
            part = values[row : row + plain.block[0], column : column + plain.block[1]]
            errors = []
            for step in range(16):
                scale = np.float32(plain.scales[place] * np.float32(2 ** (step / 16)))
                codes = (part / scale).astype(ml_dtypes.float8_e4m3fn)
                errors.append(float(np.square(codes.astype(np.float64) * scale - part).sum()))
            taken = np.log2(found.scales[place] / plain.scales[place]) * 16
            assert taken == pytest.approx(round(taken), abs=1e-3)
            assert errors[round(taken)] == pytest.approx(min(errors), rel=1e-5)
    error = np.square(found.dequantize() - values).sum() / np.square(plain.dequantize() - values).sum()
    assert error < (0.95 if granularity == "channel" else 1.0001)
