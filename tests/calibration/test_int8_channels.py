from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.llm_int8 import int8_channels


@pytest.mark.parametrize("group_size", [None, 16])
def test_every_row_or_group_has_its_own_scale(weight, group_size):
    rounded = int8_channels(weight, group_size=group_size)
    size = group_size or 64
    for row, one in enumerate(weight.double().numpy()):
        for first in range(0, 64, size):
            members = one[first : first + size]
            scale = float(np.float16(np.abs(members).max() / 127))
            expected = np.clip(np.rint(members / scale), -127, 127)
            np.testing.assert_array_equal(rounded.codes[row, first : first + size], expected)
            assert rounded.scales[row, first // size] == np.float32(scale)
    assert rounded.symmetric
    assert rounded.group_size == size
    assert rounded.codes.dtype == np.int8


def test_codes_are_chosen_against_scales_of_eight_bits(weight):
    coarse = int8_channels(weight, scale_dtype=torch.bfloat16)
    inside = np.abs(weight.numpy()) < 126 * coarse.scales
    error = np.abs(coarse.dequantize() - weight.numpy())
    assert (error <= 0.5001 * coarse.scales)[inside].all()


def test_weights_of_zero_stay_zero():
    assert not int8_channels(torch.zeros(2, 32)).dequantize().any()
