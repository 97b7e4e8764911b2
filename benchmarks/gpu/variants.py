"""The variants of every kernel that Llama 3.1 8B needs, for compiling: each tile of the table by scheme.

Tensors are of the right shapes and types and hold nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gpu.compile_only import CompilingContext

from tightpack.schemes.quantized import ActivationFormat
from tightpack.torch_backend.attention_tiles import decode_batch, mixed_batch
from tightpack.torch_backend.kernels import (
    eight_bit_matmul,
    fp8_block_matmul,
    grouped_matmul,
    int4_matmul,
    weight_only_matmul,
)
from tightpack.torch_backend.kernels.add_norm import add_norm
from tightpack.torch_backend.kernels.gated_activation import gated_activation
from tightpack.torch_backend.kernels.paged_attention import paged_attention
from tightpack.torch_backend.kernels.quantize_rows import quantize_rows
from tightpack.torch_backend.kernels.rope_cache import rope_cache
from tightpack.torch_backend.kernels.tiles import TILES, Tile
from tightpack.torch_backend.packed_weights import Packed8, PackedInt4
from tightpack.torch_backend.paged_layer import PagedLayer
from tightpack.torch_backend.quantized_rows import QuantizedRows

_N = _K = 4096
_BF16, _FP8, _INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
_ROWS = 512


def compile_variants(context: CompilingContext, only: str = "", *, guesses: bool = False) -> Iterator[str]:
    """Compile one after the other the kernels whose name contains `only`; what each is, in words.

    guesses: of the tiles, the best guess for the fewest rows and for the most alone.
    """
    for name, variants in (
        ("int4_matmul", _int4),
        ("weight_only_matmul", _weight_only),
        ("eight_bit_matmul", _eight_bit),
        ("outlier_matmul", _outliers),
        ("fp8_block_matmul", _blocks),
        ("grouped_matmul", _grouped),
        ("rows", _rows),
        ("attention", _attention),
    ):
        if only in name:
            yield from variants(context, guesses)


def _tiles(kernel: str, guesses: bool) -> Iterator[tuple[int, Tile]]:
    seen = set()
    ranges = TILES[kernel]
    for candidates in (ranges[0], ranges[-1]) if guesses else ranges:
        for tile in candidates.tiles[:1] if guesses else candidates.tiles:
            if tile not in seen:
                seen.add(tile)
                yield min(candidates.rows, _ROWS), tile


def _empty(*shape: int, dtype: torch.dtype = _BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def _words(tile: Tile) -> str:
    persistent = ", persistent" if tile.persistent else ""
    return f"{tile.outputs} x {tile.rows}, splits {tile.splits}, stages {tile.stages}{persistent}"


def _int4(context: CompilingContext, guesses: bool) -> Iterator[str]:
    for kind, group in (("symmetric", 128), ("zero-points", 128), ("zero-points", 32), ("minimums", 32)):
        scales = _empty(_K // group, _N, dtype=torch.float16)
        packed = PackedInt4(
            codes=_empty(_N // 64, _K // 128, 64, 32, dtype=torch.int16),
            scales=scales,
            zeros=_empty(_K // group, _N, dtype=torch.uint8) if kind == "zero-points" else None,
            minimums=scales if kind == "minimums" else None,
            outputs=_N,
            inputs=_K,
            group=group,
        )
        for rows, tile in _tiles("int4_matmul", guesses):
            int4_matmul.launch(_empty(rows, _K), packed, None, _empty(rows, _N), tile, context)
            yield f"{kind}, group {group}: {_words(tile)}"


def _weight_only(context: CompilingContext, guesses: bool) -> Iterator[str]:
    for dtype in (_INT8, _FP8):
        packed = Packed8(_empty(_N, _K, dtype=dtype), _empty(1, _N, dtype=torch.float32), None, 0)
        for rows, tile in _tiles("weight_only_matmul", guesses):
            weight_only_matmul.launch(_empty(rows, _K), packed, None, _empty(rows, _N), tile, context)
            yield f"{_name(dtype)}: {_words(tile)}"


def _eight_bit(context: CompilingContext, guesses: bool) -> Iterator[str]:
    for dtype in (_INT8, _FP8):
        for rows, tile in _tiles("eight_bit_matmul", guesses):
            x = QuantizedRows(_empty(rows, _K, dtype=dtype), _empty(rows, 1, dtype=torch.float32))
            _launch_eight(context, x, dtype, rows, tile)
            yield f"{_name(dtype)}: {_words(tile)}"


def _outliers(context: CompilingContext, guesses: bool) -> Iterator[str]:
    for rows, tile in _tiles("outlier_matmul", guesses):
        x = QuantizedRows(
            _empty(rows, _K, dtype=_INT8),
            _empty(rows, 1, dtype=torch.float32),
            _empty(rows, _K),
            _empty(rows, 1, dtype=torch.int32),
            6.0,
        )
        _launch_eight(context, x, _INT8, rows, tile)
        yield f"LLM.int8: {_words(tile)}"


def _launch_eight(
    context: CompilingContext, x: QuantizedRows, dtype: torch.dtype, rows: int, tile: Tile
) -> None:
    scales = _empty(_N, dtype=torch.float32)
    eight_bit_matmul.launch(x, _empty(_N, _K, dtype=dtype), scales, None, _empty(rows, _N), tile, context)


def _blocks(context: CompilingContext, guesses: bool) -> Iterator[str]:
    for rows, tile in _tiles("fp8_block_matmul", guesses):
        x = QuantizedRows(_empty(rows, _K, dtype=_FP8), _empty(rows, _K // 128, dtype=torch.float32))
        scales = _empty(_N // 128, _K // 128, dtype=torch.float32)
        codes = _empty(_N, _K, dtype=_FP8)
        fp8_block_matmul.launch(x, codes, scales, None, _empty(rows, _N), tile, context)
        yield _words(tile)


def _grouped(context: CompilingContext, guesses: bool) -> Iterator[str]:
    experts, offsets = 8, torch.zeros(9, dtype=torch.int32)
    packed = PackedInt4(
        codes=_empty(experts, _N // 64, _K // 128, 64, 32, dtype=torch.int16),
        scales=_empty(experts, _K // 128, _N, dtype=torch.float16),
        zeros=None,
        minimums=None,
        outputs=_N,
        inputs=_K,
        group=128,
    )
    for rows in (16, 4096) if guesses else (16, 512, 4096):
        y = _empty(rows, _N)
        grouped_matmul.grouped_dense(_empty(rows, _K), _empty(experts, _N, _K), None, offsets, y, context)
        yield f"bf16, {rows} rows, {experts} experts"
        eight = QuantizedRows(_empty(rows, _K, dtype=_FP8), _empty(rows, 1, dtype=torch.float32))
        codes, scales = _empty(experts, _N, _K, dtype=_FP8), _empty(experts, _N, dtype=torch.float32)
        grouped_matmul.grouped_dense(eight, codes, scales, offsets, y, context)
        yield f"fp8, {rows} rows, {experts} experts"
        grouped_matmul.grouped_int4(_empty(rows, _K), packed, offsets, y, context)
        yield f"W4A16, {rows} rows, {experts} experts"


def _rows(context: CompilingContext, guesses: bool) -> Iterator[str]:
    formats = (
        (None, "bf16"),
        (ActivationFormat(precision="int8"), "int8"),
        (ActivationFormat(precision="fp8"), "fp8"),
        (ActivationFormat(precision="fp8", scale=0.01), "static fp8"),
        (ActivationFormat(precision="fp8", per="group", group_size=128), "fp8 in groups"),
        (ActivationFormat(precision="int8", outlier_threshold=6.0), "LLM.int8"),
    )
    count = torch.zeros(1, dtype=torch.int32)
    # Of every way that a row ends: unrounded, with a scale found, given, by group, with outliers.
    for activation, name in formats[::2] if guesses else formats:
        saturated = count if activation is not None and activation.scale is not None else None
        add_norm(_empty(4, _K), _empty(4, _K), _empty(_K), 1e-5, activation, context, saturated=saturated)
        yield name
        gated_activation(_empty(4, 28672), "silu", activation, context, saturated=saturated)
        yield name
        if activation is not None:
            quantize_rows(_empty(4, _K), activation, context, saturated=saturated)
            yield name


def _attention(context: CompilingContext, guesses: bool) -> Iterator[str]:
    tables = torch.zeros(4, 64, dtype=torch.int32)
    for dtype in (_BF16, _INT8) if guesses else (_BF16, _FP8, _INT8):
        scales = _empty(64, 16, 16, dtype=torch.float32) if dtype == _INT8 else None
        layer = PagedLayer(_empty(64, 16, 16, 128, dtype=dtype), token_scales=scales)
        lengths = torch.ones(4, dtype=torch.int32)
        decode = decode_batch(tables, lengths, num_kv_heads=8, longest=4096, multiprocessors=132)
        prompt = mixed_batch(tables[:1], [256], [256], heads_a_group=4, device=torch.device("cpu"))
        for batch, rows, what in ((decode, 4, "decode"), (prompt, 256, "prompt")):
            qkv = _empty(rows, 48 * 128)
            paged_attention(qkv, layer, batch, num_heads=32, scale=0.1, context=context)
            yield f"{what}, {_name(dtype)} cache"
        rotations = _empty(16, 64, dtype=torch.complex64)
        places = torch.zeros(4, dtype=torch.int64)
        rope_cache(_empty(4, 48 * 128), rotations, places, places, layer, 32, context)
        yield f"{_name(dtype)} cache"


def _name(dtype: torch.dtype) -> str:
    return {_INT8: "int8", _FP8: "fp8", _BF16: "bf16"}[dtype]
