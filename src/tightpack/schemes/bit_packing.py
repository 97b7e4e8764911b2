"""4- and 8-bit codes in 32-bit words, low bits first: what compressed-tensors, AWQ and GPTQ share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed_length(count: int, bits: int) -> int:
    """Words that hold `count` codes."""
    return -(-count * bits // 32)


def pack_words(codes: NDArray[Any], bits: int, axis: int) -> NDArray[np.int32]:
    """codes: uint8 [.., n, ..] below 2^bits; returns int32 [.., packed_length(n), ..], padded with zeros."""
    moved = np.moveaxis(codes, axis, -1).astype(np.uint8, copy=False)
    count = moved.shape[-1]
    padded = np.zeros((*moved.shape[:-1], packed_length(count, bits) * 32 // bits), np.uint8)
    padded[..., :count] = moved
    if bits == 4:
        padded = padded[..., 0::2] | (padded[..., 1::2] << 4)
    words = np.ascontiguousarray(padded).view("<i4")
    return np.ascontiguousarray(np.moveaxis(words, -1, axis))


def unpack_words(words: NDArray[Any], bits: int, axis: int, count: int) -> NDArray[np.uint8]:
    """The inverse: int32 [.., words, ..] to uint8 [.., count, ..]."""
    moved = np.ascontiguousarray(np.moveaxis(words, axis, -1).astype("<i4", copy=False))
    octets = moved.view(np.uint8)
    if bits == 4:
        codes = np.empty((*octets.shape[:-1], octets.shape[-1] * 2), np.uint8)
        codes[..., 0::2] = octets & 15
        codes[..., 1::2] = octets >> 4
        octets = codes
    return np.ascontiguousarray(np.moveaxis(octets[..., :count], -1, axis))
