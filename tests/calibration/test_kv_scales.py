from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.calibration.kv_scales import MagnitudeRange, kv_cache_format, kv_scale


def test_scales_give_the_largest_magnitude_the_largest_code():
    ranges = [MagnitudeRange() for _ in range(2)]
    for batch in (torch.tensor([1.0, -2.0]), torch.tensor([[0.5]])):
        ranges[0].add(batch)
    ranges[1].add(torch.tensor([448.0]))
    cache = kv_cache_format(ranges, ranges[::-1], "fp8")
    assert cache.precision == "fp8"
    assert cache.key_scales == (2.0 / 448, 1.0)
    assert cache.value_scales == (1.0, 2.0 / 448)
    assert kv_cache_format(ranges, ranges, "int8").key_scales == (2.0 / 127, 448.0 / 127)


def test_percentile_leaves_out_the_few_largest():
    values = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    values[:5] = 1000.0
    clipped = MagnitudeRange(percentile=99.9)
    clipped.add(torch.from_numpy(values))
    expected = np.sort(np.abs(values))[9_990 - 1]
    assert clipped.magnitude == pytest.approx(expected)


def test_an_empty_range_has_a_scale_of_one():
    zeros = MagnitudeRange()
    zeros.add(torch.zeros(3))
    assert kv_scale(zeros.magnitude, "fp8") == 1.0


def test_what_is_no_range_is_refused():
    with pytest.raises(ValueError, match="no keys or values were seen"):
        _ = MagnitudeRange().magnitude
    with pytest.raises(ValueError, match="keys or values: 1 of 2"):
        MagnitudeRange().add(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="percentile must be"):
        MagnitudeRange(percentile=0.0)
    with pytest.raises(ValueError, match="must be finite"):
        kv_scale(float("inf"), "int8")
