"""Compiled CPU kernels (csrc/), chosen at run time for the instruction set of this machine."""

from collections.abc import Sequence
from typing import Any, Literal

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

class PackedLinear:
    """A weight matrix [outputs, inputs] in the layout that the kernels stream (csrc/packed_linear.h)."""

    @property
    def outputs(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    @property
    def codes(self) -> Literal["uint4", "uint8", "fp8", "bf16"]: ...
    @property
    def offsets(self) -> Literal["symmetric", "zeros", "minimums"]: ...
    @property
    def group_size(self) -> int:
        """Inputs that share a scale as packed; `inputs` for one scale an output."""

    @property
    def num_bytes(self) -> int:
        """Bytes in memory, scales included."""

    def dequantize(self, *, instruction_set: str = "auto") -> NDArray[np.float32]:
        """W [outputs, inputs]."""

class RowFormat:
    """How a linear's input is rounded, a row a token.

    codes: "int8" (round(x / scale), ties to even, -127 .. 127) or "bf16" (x itself, or with fp8 x / scale as
        E4M3, saturating at 448).
    width: numbers a row. group: neighbours that share a scale; 0 for one scale a row.
    static_scale: 0 for a dynamic one, the group's largest magnitude over 127 or 448.
    outlier_threshold: numbers of at least this magnitude stay exact (LLM.int8, Dettmers et al. 2022); 0 for
        none.
    weight_offset: for int8 codes, 8 or 128 where the weights are symmetric in 4 or 8 bits, else 0.
    Raises ValueError for what does not go together.
    """

    def __init__(
        self,
        codes: Literal["int8", "bf16"],
        *,
        width: int,
        group: int = 0,
        fp8: bool = False,
        static_scale: float = 0.0,
        outlier_threshold: float = 0.0,
        weight_offset: int = 0,
    ) -> None: ...
    @property
    def width(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def codes(self) -> Literal["int8", "bf16"]: ...
    def reason_against(self, weights: PackedLinear) -> str | None:
        """Why rows of this format cannot meet the weights; None where they can."""

    def rounded(self, x: NDArray[np.float32], *, instruction_set: str = "auto") -> NDArray[np.float32]:
        """x [rows, width] as the linear sees it: codes times scales, outliers in place."""

    def __eq__(self, other: object) -> bool: ...

def pack_dense(parts: Sequence[NDArray[Any]], threads: int = 1) -> PackedLinear:
    """Matrices [outputs, inputs], one below the other, rounded to bfloat16.

    parts: float32, float16, or uint16 holding the bits of bfloat16.
    Raises ValueError where parts have different inputs.
    """

def pack_int(
    parts: Sequence[
        tuple[NDArray[Any], NDArray[np.float32], NDArray[np.uint8] | None, NDArray[np.float32] | None]
    ],
    *,
    bits: int,
    group_size: int,
    threads: int = 1,
) -> PackedLinear:
    """Integer matrices, one below the other; `schemes.quantized.IntWeight` says what they mean.

    parts: (codes int8 or uint8 [outputs, inputs], scales [outputs, groups], zeros, minimums) each.
    Scales of groups are kept in fp16 (after division by a power of two), one an output in float32.
    Raises ValueError for shapes that do not fit, and for groups that are no multiple of 8 (of 4 for 8 bits).
    """

def pack_fp8(
    parts: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32], tuple[int, int]]], threads: int = 1
) -> PackedLinear:
    """E4M3 matrices, one below the other; `schemes.quantized.Fp8Weight` says what they mean.

    parts: (codes as uint8 [outputs, inputs], scales, (rows, columns) of a block) each.
    Scales of blocks narrower than the matrix are kept in fp16, after division by a power of two.
    """

def pack_gguf(
    parts: Sequence[NDArray[np.uint8]], *, precision: str, inputs: int, threads: int = 1
) -> PackedLinear:
    """Rows of GGUF blocks [outputs, bytes], one below the other, straight from the mapped file.

    precision: "q4_0", "q4_1" or "q8_0".
    """

def linear(
    weights: PackedLinear,
    x: NDArray[np.float32],
    format: RowFormat,
    threads: int = 1,
    *,
    instruction_set: str = "auto",
) -> NDArray[np.float32]:
    """x [rows, inputs], rounded as `format` says, times W^T: [rows, outputs].

    A row's numbers have the same bits whatever rows are beside it and however many threads compute.
    Raises ValueError where the format does not suit the weights.
    """
