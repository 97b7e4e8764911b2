"""Packing against a plain reading of the bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tightpack.schemes.bit_packing import pack_words, packed_length, unpack_words


@st.composite
def codes_of(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    bits = draw(st.sampled_from((4, 8)))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=19))
    return bits, draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))


@given(codes_of(), st.sampled_from((0, 1)))
def test_round_trip(case: tuple[int, np.ndarray], axis: int) -> None:
    bits, codes = case
    words = pack_words(codes, bits, axis)
    assert words.dtype == np.int32
    assert words.shape[axis] == packed_length(codes.shape[axis], bits)
    np.testing.assert_array_equal(unpack_words(words, bits, axis, codes.shape[axis]), codes)


@given(codes_of())
def test_low_bits_first(case: tuple[int, np.ndarray]) -> None:
    bits, codes = case
    words = pack_words(codes, bits, 1).view(np.uint32)
    for row, numbers in zip(words, codes, strict=True):
        whole = sum(int(word) << (32 * place) for place, word in enumerate(row))
        assert whole == sum(int(code) << (bits * place) for place, code in enumerate(numbers))


@settings(deadline=None)  # the first example imports torch
@given(codes_of(), st.sampled_from((0, 1)))
def test_as_compressed_tensors_packs(case: tuple[int, np.ndarray], axis: Any) -> None:
    pytest.importorskip("compressed_tensors")
    torch = pytest.importorskip("torch")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    bits, codes = case
    signed = (codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
    theirs = pack_to_int32(torch.from_numpy(signed), bits, packed_dim=axis)
    np.testing.assert_array_equal(pack_words(codes, bits, axis), theirs.numpy())
