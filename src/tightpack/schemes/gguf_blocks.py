"""GGUF's blocks of 32 that are integers with a scale, without loss (ggml's ggml-common.h and ggml-quants.c).

    q4_0  fp16 d, 16 bytes of codes             W = (code - 8) * d
    q4_1  fp16 d, fp16 m, 16 bytes of codes     W = code * d + m
    q8_0  fp16 d, 32 bytes of signed codes      W = code * d
Byte i of a block of 4 bits holds code i in its low half and code i + 16 in its high half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightpack.schemes.layout import scales_of
from tightpack.schemes.quantized import IntWeight

BLOCK = 32
PRECISIONS = ("q4_0", "q4_1", "q8_0")
_LABELS = {"q4_0": "int4", "q4_1": "int4, asymmetric", "q8_0": "int8"}


def label(precision: str) -> str:
    """For people: "q4_1 (int4, asymmetric, group 32)"."""
    return f"{precision} ({_LABELS[precision]}, group {BLOCK})" if precision in _LABELS else precision


def unpack_blocks(blocks: NDArray[np.uint8], precision: str) -> IntWeight:
    """blocks: uint8 [outputs, bytes a row]; precision: of PRECISIONS.

    Raises LayoutError where a scale is NaN or infinite.
    """
    header = 4 if precision == "q4_1" else 2
    width = header + (BLOCK if precision == "q8_0" else BLOCK // 2)
    outputs = blocks.shape[0]
    grouped = np.ascontiguousarray(blocks).reshape(outputs, -1, width)
    groups = grouped.shape[1]
    numbers = np.ascontiguousarray(grouped[:, :, :header]).view("<f2")
    body = grouped[:, :, header:]
    scales = scales_of("scales", numbers[:, :, 0], (outputs, groups))
    minimums = None
    codes: NDArray[Any]
    if precision == "q8_0":
        codes = np.ascontiguousarray(body).view(np.int8)
    else:
        codes = np.concatenate([body & np.uint8(15), body >> np.uint8(4)], -1)
        if precision == "q4_0":
            codes = (codes - np.uint8(8)).view(np.int8)
        else:
            minimums = scales_of("minimums", numbers[:, :, 1], (outputs, groups))
    return IntWeight(
        codes=codes.reshape(outputs, groups * BLOCK),
        scales=scales,
        zeros=None,
        bits=8 if precision == "q8_0" else 4,
        group_size=BLOCK,
        minimums=minimums,
    )
