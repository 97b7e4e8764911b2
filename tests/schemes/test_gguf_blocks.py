"""GGUF blocks as integers give what ggml's own reference gives."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st

from tightpack.schemes.gguf_blocks import label, unpack_blocks
from tightpack.schemes.layout import LayoutError

TYPES = {
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}


@given(st.sampled_from(sorted(TYPES)), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32))
def test_as_ggml(precision: str, rows: int, groups: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(rows, groups * 32)).astype(np.float32)
    blocks = quantize(weight, TYPES[precision])
    unpacked = unpack_blocks(blocks, precision)
    np.testing.assert_array_equal(unpacked.dequantize(), dequantize(blocks, TYPES[precision]))
    assert unpacked.num_bytes == blocks.nbytes
    assert unpacked.symmetric == (precision != "q4_1")


def test_nan_scale() -> None:
    blocks = np.zeros((2, 18), np.uint8)
    blocks[1, :2] = 255
    with pytest.raises(LayoutError, match="1 of 2 values are NaN"):
        unpack_blocks(blocks, "q4_0")


def test_labels() -> None:
    assert label("q4_1") == "q4_1 (int4, asymmetric, group 32)"
    assert label("q6_k") == "q6_k"
