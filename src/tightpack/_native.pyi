"""Compiled CPU kernels (csrc/), chosen at run time for the instruction set of this machine."""

from collections.abc import Sequence

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

class KVCache:
    """Keys and values of all layers, in blocks of positions (Kwon et al. 2023), zeros at first.

    precision: "bf16", "fp8" (E4M3, saturating at 448) and "int8" (-127 .. 127) with a static scale a layer
    for keys and one for values, 1 where none are given; "dynamic_int8" with a scale for each position and
    head, the largest magnitude over 127. A value is code * scale; codes are rounded to nearest, ties to even.

    Pages are taken from the system when first written. Raises ValueError where the numbers make no cache:
    block_size is a multiple of 16, head_dim even and at most 256, scales positive and one a layer.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        precision: str = "bf16",
        key_scales: Sequence[float] = (),
        value_scales: Sequence[float] = (),
    ) -> None: ...
    @staticmethod
    def block_bytes(
        *, num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, precision: str = "bf16"
    ) -> int:
        """Bytes of one block in all layers, scales included."""

    @property
    def num_bytes(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    def read(
        self, layer: int, blocks: NDArray[np.int32], count: int
    ) -> tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.float32], NDArray[np.float32]]:
        """The codes of the keys and of the values at positions 0 .. count - 1 of a request, and their scales.

        blocks: position p lies in block blocks[p // block_size]. Codes are [count, num_kv_heads, head_dim]:
        bits of bfloat16 as uint16, 8-bit codes as uint8; scales float32 [count, num_kv_heads].
        """

    def clear(self, blocks: NDArray[np.int32], first: int, last: int) -> None:
        """Set positions first .. last - 1 of a request to zero in all layers.

        Done for requests that failed: every position must hold finite numbers, since attention multiplies
        those behind a query by zero.
        """

def rotate_and_store(
    cache: KVCache,
    layer: int,
    qkv: NDArray[np.float32],
    groups: Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]],
    *,
    num_heads: int,
    cos: NDArray[np.float32] | None = None,
    sin: NDArray[np.float32] | None = None,
    query_norm: NDArray[np.float32] | None = None,
    key_norm: NDArray[np.float32] | None = None,
    norm_eps: float = 0.0,
    keys: bool = True,
    threads: int = 1,
    instruction_set: str = "auto",
) -> NDArray[np.uint16]:
    """Queries for `attend`; keys and values into the cache: an operation of the step program by itself.

    qkv: [rows, (num_heads + 2 * num_kv_heads) * head_dim]: the heads of queries, keys and values. Without
    keys (keys=False) or queries (num_heads=0) their columns are absent.
    groups: of each request, in the order of the rows, the ascending positions of its rows and its blocks
    (position p lies in block blocks[p // block_size]).
    cos, sin: [positions, head_dim / 2], indexed by position; dimensions i and i + head_dim / 2 are rotated
    together (Su et al. 2021, in Hugging Face's layout). None: no rotation.
    query_norm, key_norm: weights [head_dim] of an RMSNorm with norm_eps before the rotation, or None.

    Returns the queries, bits of bfloat16 [rows, num_heads, head_dim]. Raises ValueError where shapes,
    positions or blocks do not fit.
    """

def attend(
    cache: KVCache,
    layer: int,
    queries: NDArray[np.uint16],
    groups: Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]],
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    threads: int = 1,
    instruction_set: str = "auto",
) -> NDArray[np.float32]:
    """softmax(scale * q k) v over the positions up to each query's own.

    queries: bits of bfloat16 [rows, num_heads, head_dim]; heads share keys and values in runs of num_heads /
    num_kv_heads. groups: as of `rotate_and_store`; any positions that the cache holds.
    scale: positive. softcap: c replaces a score x by c * tanh(x / c); 0: none. window: position p sees
    p - window + 1 .. p; 0: all.

    Returns float32, shaped as queries. On one instruction set the bits of a row depend on its query and on
    the positions it sees alone: not on the other rows, nor on threads. Products are of bfloat16
    (probabilities are rounded to it), sums float32. Raises ValueError where shapes, positions or blocks do
    not fit.
    """
