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

class Arena:
    """Memory that packed weights share, on huge pages; freed with the last of them. The functions that pack
    take one; without it a weight has memory of its own."""

    def __init__(self) -> None: ...

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

    codes: "int8" (round(x / scale), ties to even) or "bf16" (x itself, or with fp8 x / scale as
        E4M3, saturating at 448).
    width: numbers a row. group: neighbours that share a scale; 0 for one scale a row.
    static_scale: 0 for a dynamic one, the group's largest magnitude over half of `steps` or 448.
    steps: of int8 codes: 254 of them reach from -127 to 127, 255 from -128.
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
        steps: int = 254,
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

def pack_dense(parts: Sequence[NDArray[Any]], threads: int = 1, arena: Arena | None = None) -> PackedLinear:
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
    arena: Arena | None = None,
) -> PackedLinear:
    """Integer matrices, one below the other; `schemes.quantized.IntWeight` says what they mean.

    parts: (codes int8 or uint8 [outputs, inputs], scales [outputs, groups], zeros, minimums) each.
    Scales of groups are kept in fp16 (after division by a power of two), one an output in float32.
    Raises ValueError for shapes that do not fit, and for groups that are no multiple of 8 (of 4 for 8 bits).
    """

def pack_fp8(
    parts: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32], tuple[int, int]]],
    threads: int = 1,
    arena: Arena | None = None,
) -> PackedLinear:
    """E4M3 matrices, one below the other; `schemes.quantized.Fp8Weight` says what they mean.

    parts: (codes as uint8 [outputs, inputs], scales, (rows, columns) of a block) each.
    Scales of blocks narrower than the matrix are kept in fp16, after division by a power of two.
    """

def pack_gguf(
    parts: Sequence[NDArray[np.uint8]],
    *,
    precision: str,
    inputs: int,
    threads: int = 1,
    arena: Arena | None = None,
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

def add_token_products(
    sums: NDArray[np.float32],
    left: NDArray[np.uint16],
    right: NDArray[np.uint16] | None = None,
    threads: int = 1,
    *,
    instruction_set: str = "auto",
) -> None:
    """sums += left^T right in float32: products of columns, summed over tokens.

    left [tokens, rows], right [tokens, columns]: the bits of bfloat16. sums [rows, columns], in place.
    right: None for left itself; only the lower triangle of the sums is defined then, at half the work.
    A sum has the same bits however many threads compute. Raises ValueError for shapes that do not fit.
    """

def round_columns(
    state: NDArray[np.float32],
    held: NDArray[np.float32] | None,
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32] | None,
    group_of_column: NDArray[np.int32],
    bits: int,
    pivots: NDArray[np.float32],
    influence: NDArray[np.float32],
    codes: NDArray[np.float32],
    changes: NDArray[np.float32],
    threads: int = 1,
    *,
    instruction_set: str = "auto",
) -> None:
    """Columns rounded in turn, as `calibration.column_rounding.round_block` says; codes, changes: results.

    Raises ValueError for shapes that do not fit, more than 128 columns, and groups that are not there.
    """

class ThreadTeam:
    """Threads that stay, shared by programs and the sampler: between pieces of work they spin, then sleep.

    One piece of work at a time: what runs on a team must not be called from two threads at once.
    """

    def __init__(self, threads: int, *, cores: Sequence[Sequence[int]] = ()) -> None:
        """threads: 1 .. 1024, the caller's included. cores: the CPUs that each thread keeps to, the caller
        for the time of a run; none to leave it to the system. ValueError for other numbers."""

    @property
    def threads(self) -> int: ...

class Value:
    """What one operation of a `Program` makes and later ones read: a matrix with a row a token of the step.

    Opaque; its memory is the program's, and is used again after the last operation that reads it.
    """

    @property
    def width(self) -> int:
        """Numbers a row."""

class Program:
    """The forward pass of a decoder, recorded once and replayed for every step.

    The methods named after operations append one each. They work on the residual stream, float32 [rows,
    hidden_size], and on values that earlier ones returned; a row is a token of the step. What does not fit
    is a ValueError that names both sides. `run` computes a step in one call, without the interpreter lock.

    A row's logits are the same bits whatever other rows the step holds and however many threads there are.
    """

    def __init__(
        self,
        team: ThreadTeam,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        instruction_set: str = "auto",
        timed: bool = False,
    ) -> None:
        """instruction_set: "auto", or one of instruction_sets(). timed: keep the times that `profile`
        reports (a clock read an operation).
        """

    @property
    def team(self) -> ThreadTeam: ...
    @property
    def instruction_set(self) -> str: ...
    @property
    def operations(self) -> list[str]:
        """One line an operation, in order, with what it reads and makes."""

    def num_barriers(self, rows: int) -> int:
        """Times that a step of so many rows makes threads wait for each other, attention's own left out."""

    def embed(self, table: PackedLinear, *, scale: float = 1.0) -> None:
        """The residual stream becomes scale * table[token]. First, and once.

        table: [vocabulary, hidden_size].
        """

    def norm(self, weight: NDArray[np.float32], eps: float, into: RowFormat) -> Value:
        """x / sqrt(mean(x^2) + eps) * weight of the residual stream (Zhang and Sennrich 2019), rounded into
        rows.

        weight: float32 [hidden_size], any offset added (Gemma's 1 + w); copied. into.width is hidden_size.
        Linears that want different formats take a norm each.
        """

    def quantize(self, values: Value, into: RowFormat) -> Value:
        """float32 values rounded into rows; into.width is theirs."""

    def buffer(self, width: int) -> Value:
        """A float32 value for linears to write side by side (`out`); no operation of its own."""

    def linear(
        self,
        rows: Value,
        weight: PackedLinear,
        *,
        bias: NDArray[np.float32] | None = None,
        outputs: tuple[int, int] | None = None,
        out: Value | None = None,
        first_column: int = 0,
        name: str = "linear",
    ) -> Value:
        """rows @ weight.T (+ bias), float32.

        rows: from `norm`, `quantize` or `gate`. bias: [weight.outputs], copied. outputs: compute [first,
        last) of the weight's outputs alone; multiples of 16, or last the end. out, first_column: write
        there instead of into a new value. name: what `profile` counts it under. Returns what was written.
        The program keeps weights alive.
        """

    def linear_add(
        self,
        rows: Value,
        weight: PackedLinear,
        *,
        bias: NDArray[np.float32] | None = None,
        name: str = "linear",
    ) -> None:
        """The residual stream += rows @ weight.T (+ bias), in the linear's own pass."""

    def norm_add(self, values: Value, weight: NDArray[np.float32], eps: float) -> None:
        """The residual stream += the norm of values (Gemma's norms after attention and MLP)."""

    def gate(self, gate_up: Value, activation: str, into: RowFormat) -> Value:
        """activation(gate) * up, rounded into rows. gate_up: float32 [rows, 2 * into.width], gate first.
        activation: "silu" or "gelu_tanh"."""

    def route(self, scores: Value, *, experts_per_token: int, normalized: bool) -> Value:
        """The experts that a row takes: float32 [rows, 2 * experts_per_token], their shares, the largest
        first, and behind those their numbers; of equal scores the lowest number comes first.

        scores: float32 [rows, experts]. A share is of the softmax of all scores, or with normalized of the
        softmax of those chosen, so that a row's shares sum to 1.
        """

    def experts(
        self,
        routes: Value,
        norm: NDArray[np.float32],
        eps: float,
        activation: str,
        gate_up: tuple[tuple[tuple[PackedLinear, RowFormat], ...], ...],
        down: tuple[tuple[tuple[PackedLinear, RowFormat], ...], ...],
    ) -> None:
        """The residual stream += for each row the sum over its experts, in the order of `routes`, of share *
        down(activation(gate) * up), of the residual stream's norm.

        routes: what `route`, the operation just before, returned. norm, eps: as of `norm`. gate_up, down: of
        each expert, the weights over the same inputs whose outputs lie one after the other (all of gate's,
        then up's), each with the format that rows are rounded to for it. The program keeps weights alive.
        """

    def rotate_and_store(
        self,
        qkv: Value,
        layer: int,
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
        *,
        query_norm: NDArray[np.float32] | None = None,
        key_norm: NDArray[np.float32] | None = None,
        eps: float = 0.0,
    ) -> Value:
        """Rotates queries and keys (half-split layout), stores keys and values in the cache, returns the
        queries in bfloat16.

        qkv: float32, queries | keys | values. cos, sin: float32 [positions, head_dim / 2]; kept alive,
        shared by as many layers as like. query_norm, key_norm: [head_dim], an RMSNorm of each head before
        rotation.
        """

    def store_keys_values(
        self,
        keys_values: Value,
        layer: int,
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
        *,
        key_norm: NDArray[np.float32] | None = None,
        eps: float = 0.0,
    ) -> None:
        """The half of `rotate_and_store` that the rows which nobody wants need in the last layer.
        keys_values: float32, keys | values.
        """

    def rotate_queries(
        self,
        queries: Value,
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
        *,
        query_norm: NDArray[np.float32] | None = None,
        eps: float = 0.0,
    ) -> Value:
        """The other half. queries: float32; returns them in bfloat16."""

    def attention(
        self, queries: Value, layer: int, *, scale: float, softcap: float = 0.0, window: int = 0
    ) -> Value:
        """Causal attention of the queries to their requests' positions in the cache: float32
        [rows, num_heads * head_dim]. softcap, window: 0 for none."""

    def keep_wanted_rows(self) -> None:
        """From here on the residual stream holds only the rows whose logits are wanted; values made before
        can no longer be read.
        """

    def head(self, rows: Value, weight: PackedLinear, *, softcap: float = 0.0) -> None:
        """The logits, float32 [wanted rows, weight.outputs]; softcap * tanh(x / softcap) of them unless it
        is 0. Last, and after `keep_wanted_rows`.
        """

    def run(
        self,
        token_ids: NDArray[np.int32],
        chunks: NDArray[np.int32],
        blocks: NDArray[np.int32],
        wanted_rows: NDArray[np.int32],
        cache: KVCache,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Computes a step.

        token_ids: [rows], the tokens of the chunks one after the other. chunks: [chunks, 3], of each its
        number of tokens, the position of the first, and how many of `blocks` are its request's. blocks: the
        requests' block tables one after the other. wanted_rows: rows whose logits are wanted, ascending.

        Returns the logits, [wanted rows, vocabulary], a view that is good until the next run, and for each
        chunk whether all its numbers were finite; where they were not, its logits mean nothing and its
        positions in the cache are zeroed. Raises ValueError, naming the numbers, where the arrays do not
        fit each other, the tables or the cache; RuntimeError where a run is under way.
        """

    def profile(self) -> dict[str, float]:
        """Seconds since the last call by kind of operation, of a program that is `timed`; threads' waiting
        for each other included.
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

class SamplingSettings:
    """How a request's logits are edited and drawn from; `requests.sampling_params` says what the numbers
    mean.

    bias: (token id, value) pairs. endings: token ids that a row may hold back. Ids must be in the vocabulary.
    """

    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        bias: Sequence[tuple[int, float]],
        endings: Sequence[int],
    ) -> None: ...
    @property
    def penalizes(self) -> bool:
        """Whether tokens so far matter, so that they must be told."""

    def see_prompt(self, tokens: Sequence[int]) -> None: ...
    def see_output(self, tokens: Sequence[int]) -> None:
        """Tokens of the output that were not told before."""

class Sampler:
    """Chooses the next token of each row of logits, on a team's threads (csrc/sampler.h)."""

    def __init__(self, team: ThreadTeam, *, instruction_set: str = "auto") -> None: ...
    def sample(
        self, logits: NDArray[np.float32], rows: Sequence[tuple[SamplingSettings, float, bool] | None]
    ) -> list[int]:
        """A token id for each row of logits [rows, vocabulary]; -1 where they hold NaN or their largest is
        not finite.

        rows: None for the likeliest token, else settings, a uniform number in [0, 1), and whether the endings
        are held back.
        """

    def token_logprobs(
        self, logits: NDArray[np.float32], token_ids: Sequence[int], counts: Sequence[int]
    ) -> list[tuple[float, int, tuple[tuple[int, float], ...]]]:
        """Log-probability and rank of each row's token, and the row's `counts` likeliest (token id,
        logprob)."""
