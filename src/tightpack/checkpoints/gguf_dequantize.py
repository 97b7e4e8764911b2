"""GGUF blocks to float32, by the compiled kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tightpack._native import dequantize_blocks


def dequantize(blocks: NDArray[np.uint8], precision: str, count: int) -> NDArray[np.float32]:
    """blocks: uint8 [bytes]; precision as in gguf_file.PRECISIONS; returns float32 [count]."""
    values: NDArray[np.float32] = dequantize_blocks(np.ascontiguousarray(blocks), precision, count)
    return values
