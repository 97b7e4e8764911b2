"""Whose kernel attends in steps with prompt tokens: FlashInfer's where a trial finds it right and faster."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from tightpack.architectures.model_spec import ModelSpec
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend.flashinfer_attention import KINDS, FlashInferAttention, Kind
from tightpack.torch_backend.kernel_attention import KernelAttention
from tightpack.torch_backend.kv_cache import KVCache
from tightpack.torch_backend.profiling import device_seconds
from tightpack.torch_backend.rounded_kv_cache import STORAGE, StaticKVCache
from tightpack.torch_backend.step_inputs import Piece
from tightpack.torch_backend.triton_kernels import KernelContext

logger = logging.getLogger(__name__)

_HEAD_DIMS = (64, 128, 256)
# A trial's chunk, and the requests and contexts beside it: 128 MiB of Llama 3.1 8B's cache.
_CHUNK, _DECODES, _CONTEXT = 512, 32, 1024
# Two ways of rounding to bfloat16 differ by less than half of this.
_LARGEST_DIFFERENCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """What attention is chosen for. spec: this rank's; longest: context; most_tokens: of a step."""

    spec: ModelSpec
    block_size: int
    device: torch.device
    dtype: torch.dtype
    kv_format: KVCacheFormat
    longest: int
    most_tokens: int


def choose_attention(shape: AttentionShape, context: KernelContext, backend: str) -> KernelAttention:
    """backend: "auto", "triton" or "flashinfer".

    Raises ValueError where FlashInfer is asked for by name and cannot be had, or gives wrong numbers.
    """
    spec, size, device, longest = shape.spec, shape.block_size, shape.device, shape.longest
    ours = KernelAttention(spec, size, device, context, longest=longest)
    if backend == "triton":
        return ours
    reason = reason_against_flashinfer(shape)
    if reason is None:
        logger.info("trying FlashInfer, which compiles its kernels when it first meets a shape")
        try:
            theirs = FlashInferAttention(
                spec,
                size,
                device,
                context,
                longest=longest,
                library=importlib.import_module("flashinfer"),
                dtype=shape.dtype,
                storage=STORAGE[shape.kv_format.precision],
            )
            return _faster(ours, theirs, shape, by_name=backend == "flashinfer")
        # Whatever it is (no compiler, a GPU it does not know, wrong numbers), the Triton kernel is there.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    if backend == "flashinfer":
        raise ValueError(f"attention_backend='flashinfer' cannot be had: {reason}; use auto or triton")
    logger.info("attention is Triton's: %s", reason)
    return ours


def reason_against_flashinfer(shape: AttentionShape) -> str | None:
    """Why FlashInfer cannot attend, before anything of it is imported; None where it may."""
    storage, width = STORAGE[shape.kv_format.precision], shape.spec.head_dim
    if importlib.util.find_spec("flashinfer") is None:
        return "FlashInfer is not installed (pip install flashinfer-python)"
    if storage not in (shape.dtype, torch.float8_e4m3fn):
        return f"FlashInfer takes a cache in the decoder's dtype or fp8, not {shape.kv_format.precision}"
    if width not in _HEAD_DIMS:
        return f"FlashInfer takes heads of {', '.join(map(str, _HEAD_DIMS))}, not {width}"
    return None


def _faster(
    ours: KernelAttention, theirs: FlashInferAttention, shape: AttentionShape, *, by_name: bool
) -> KernelAttention:
    """The attention with FlashInfer in the kinds of steps that it is faster in, or in all `by_name`."""
    kinds: set[Kind] = set()
    for kind in KINDS:
        pieces = trial_pieces(kind, shape)
        seconds, others = compare(ours, theirs, pieces, shape)
        taken = by_name or others < seconds
        if taken:
            kinds.add(kind)
        logger.info(
            "attention in steps of %s is %s: %.3f ms by FlashInfer, %.3f ms by Triton",
            "prompts" if kind == "prompts" else "prompts and decodes",
            "FlashInfer's" if taken else "Triton's",
            1e3 * others,
            1e3 * seconds,
        )
    if not kinds:
        return ours
    theirs.kinds = frozenset(kinds)
    return theirs


def trial_pieces(kind: Kind, shape: AttentionShape) -> list[Piece]:
    """A prompt as long as a step takes; or a chunk of one, and decodes beside it."""
    longest, most = shape.longest, shape.most_tokens
    if kind == "prompts":
        spans = [(0, min(most, longest))]
    else:
        first = min(_CONTEXT, longest - 1)
        decodes = max(1, min(_DECODES, most // 2))
        spans = [(0, max(1, min(_CHUNK, longest, most - decodes))), *[(first, 1)] * decodes]
    pieces, free = [], 0
    for first, count in spans:
        blocks = -(-(first + count) // shape.block_size)
        pieces.append(Piece((0,) * count, first, tuple(range(free, free + blocks))))
        free += blocks
    return pieces


class _OneLayer(StaticKVCache):
    """One layer that stands for all."""

    def pool(self, layer: int) -> torch.Tensor:
        return super().pool(0)


def compare(
    ours: KernelAttention, theirs: KernelAttention, pieces: Sequence[Piece], shape: AttentionShape
) -> tuple[float, float]:
    """Seconds that each takes for the attention of all layers, over random keys and values.

    Raises ValueError where their results differ by more than rounding.
    """
    spec, device = shape.spec, shape.device
    cache = _random_cache(shape, 1 + max(piece.block_table[-1] for piece in pieces))
    rows = sum(piece.num_tokens for piece in pieces)
    width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    qkv = torch.randn((rows, width), device=device).to(shape.dtype)
    windows = [layer.window for layer in spec.layers]
    layers = Counter(windows)
    inputs = [attention.build(pieces) for attention in (ours, theirs)]
    seconds = [0.0, 0.0]
    for window, count in layers.items():
        index = windows.index(window)
        right, found = (
            attention.mix(cache, index, qkv, given).float()
            for attention, given in zip((ours, theirs), inputs, strict=True)
        )
        difference = float((found - right).norm() / right.norm())
        if not difference <= _LARGEST_DIFFERENCE:
            raise ValueError(
                f"its result is {difference:.1%} off the Triton kernel's with window {window}, heads of "
                f"{spec.head_dim} and an {shape.kv_format.precision} cache"
            )
        for which, attention in enumerate((ours, theirs)):
            run = partial(attention.mix, cache, index, qkv, inputs[which])
            seconds[which] += count * device_seconds(run, device)
    return seconds[0], seconds[1]


def _random_cache(shape: AttentionShape, num_blocks: int) -> KVCache:
    one = replace(shape.spec, layers=shape.spec.layers[:1])
    plain = KVCacheFormat(precision=shape.kv_format.precision)
    cache = _OneLayer(one, num_blocks, shape.block_size, plain, shape.dtype, shape.device)
    pool = cache.pool(0)
    pool.copy_(torch.randn(pool.shape, dtype=torch.bfloat16, device=shape.device))
    return cache
