"""Compiled CPU kernels (csrc/), chosen at run time for the instruction set of this machine."""

import numpy as np
from numpy.typing import NDArray

def instruction_sets() -> list[str]:
    """The instruction sets usable here, best first: of "avx512_bf16" (that and VNNI), "avx512_vnni", "avx2"
    and, always last, "portable"."""

def dequantize_blocks(
    data: NDArray[np.uint8],
    precision: str,
    count: int,
    threads: int = 1,
    *,
    instruction_set: str = "auto",
) -> NDArray[np.float32]:
    """GGUF blocks to float32, bit for bit as the gguf package dequantizes them.

    data: uint8 [bytes], contiguous, any alignment, may be read-only; the blocks as they lie in the file.
    precision: "fp16", "bf16", "q4_0", "q4_1", "q5_0", "q8_0", "q4_k" or "q6_k".
    count: elements in data, a multiple of the block's (1, 32 or 256).
    threads: 1 .. 1024, the caller's included. The interpreter lock is released meanwhile.
    instruction_set: "auto", or one of instruction_sets(); all give the same bits.

    Returns float32 [count]. Raises ValueError where the numbers do not fit each other or a name is unknown,
    TypeError where data is no contiguous uint8 vector.
    """

def dequantize_blocks_bf16(
    data: NDArray[np.uint8],
    precision: str,
    count: int,
    threads: int = 1,
    *,
    instruction_set: str = "auto",
) -> NDArray[np.uint16]:
    """GGUF blocks to bfloat16: dequantize_blocks, each value rounded once to nearest, ties to even.

    Arguments and errors as of dequantize_blocks. Returns the bits as uint16 [count]; view them as
    ml_dtypes.bfloat16. A NaN stays a NaN; bf16 input is copied unchanged.
    """
