"""Attention by the Triton kernels: rotation with the cache's write in one, then paged attention in place.

Nothing waits for the device and nothing is gathered, so that a decode step can be recorded whatever its
contexts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.architectures.model_spec import ModelSpec
from tightpack.torch_backend.attention import Rotations
from tightpack.torch_backend.attention_tiles import decode_batch, mixed_batch
from tightpack.torch_backend.kv_cache import KVCache
from tightpack.torch_backend.paged_layer import PagedLayer
from tightpack.torch_backend.step_inputs import DecodeBuffers, InputBuilder, Piece, StepInputs
from tightpack.torch_backend.transfer import send
from tightpack.torch_backend.triton_kernels import KernelContext, backend_module, multiprocessors


class KernelAttention:
    """An `attention.Attention`, and the builder of its inputs. spec: this rank's.

    longest: the context that decodes are divided for.
    """

    def __init__(
        self,
        spec: ModelSpec,
        block_size: int,
        device: torch.device,
        context: KernelContext,
        *,
        longest: int,
    ) -> None:
        self._spec, self._size, self._device, self._context = spec, block_size, device, context
        self._longest, self._multiprocessors = longest, multiprocessors(device)
        self._rope = backend_module("kernels.rope_cache").rope_cache
        self._attend = backend_module("kernels.paged_attention").paged_attention

    def build(self, pieces: Sequence[Piece]) -> StepInputs:
        """As InputBuilder.build, rows in the order of the pieces."""
        counts = [piece.num_tokens for piece in pieces]
        starts = np.cumsum([0, *counts])
        firsts = np.asarray([piece.first_token for piece in pieces])
        positions = np.arange(starts[-1]) + np.repeat(firsts - starts[:-1], counts)
        widest = max(-(-(p.first_token + p.num_tokens) // self._size) for p in pieces)
        tables = np.zeros((len(pieces), widest), dtype=np.int32)
        for row, piece in enumerate(pieces):
            blocks = piece.block_table[:widest]
            tables[row, : len(blocks)] = blocks
        block = tables[np.repeat(np.arange(len(pieces)), counts), positions // self._size]
        tokens = np.concatenate([np.asarray(piece.tokens, dtype=np.int64) for piece in pieces])
        contexts = [piece.first_token + piece.num_tokens for piece in pieces]
        batch = self._batch(tables, counts, contexts)
        numbers = np.stack([tokens, positions, block * self._size + positions % self._size])
        token_ids, places, slots = send(torch.from_numpy(numbers), self._device)
        return StepInputs(tuple(starts[:-1].tolist()), token_ids, places, slots, {}, batch)

    def _batch(self, tables: NDArray[np.int32], counts: Sequence[int], contexts: Sequence[int]) -> object:
        """What `mix` takes of a step with prompt tokens. tables: [pieces, blocks]; counts: of the pieces'
        tokens; contexts: with these."""
        return mixed_batch(
            send(torch.from_numpy(tables), self._device),
            counts,
            contexts,
            heads_a_group=self._spec.num_heads // self._spec.num_kv_heads,
            device=self._device,
        )

    def of_decode(self, buffers: DecodeBuffers) -> StepInputs:
        """As InputBuilder.of_decode; padded rows write to the block that is nobody's."""
        tables, positions = buffers.block_tables, buffers.positions
        block = tables.gather(1, (positions // self._size).unsqueeze(1)).squeeze(1)
        batch = decode_batch(
            tables.to(torch.int32),
            (positions + 1).to(torch.int32),
            num_kv_heads=self._spec.num_kv_heads,
            longest=self._longest,
            multiprocessors=self._multiprocessors,
        )
        slots = block * self._size + positions % self._size
        return StepInputs(tuple(range(buffers.size)), buffers.token_ids, positions, slots, {}, batch)

    def slots_in(self, block: int) -> Tensor:
        """As InputBuilder.slots_in: one a token."""
        return torch.tensor([block * self._size], device=self._device)

    def rotations(self, tables: Rotations, inputs: StepInputs) -> Rotations:
        return tables

    def __call__(
        self,
        cache: KVCache,
        index: int,
        qkv: Tensor,
        qk_norm: Tensor | None,
        rotation: Tensor,
        inputs: StepInputs,
    ) -> Tensor:
        self.write(cache, index, qkv, qk_norm, rotation, inputs)
        return self.mix(cache, index, qkv, inputs)

    def write(
        self,
        cache: KVCache,
        index: int,
        qkv: Tensor,
        qk_norm: Tensor | None,
        rotation: Tensor,
        inputs: StepInputs,
    ) -> None:
        spec = self._spec
        self._rope(
            qkv,
            rotation,
            inputs.positions,
            inputs.slots,
            _paged(cache, index),
            spec.num_heads,
            self._context,
            qk_norm=qk_norm,
            eps=spec.norm_eps,
        )

    def mix(self, cache: KVCache, index: int, qkv: Tensor, inputs: StepInputs) -> Tensor:
        spec = self._spec
        mixed: Tensor = self._attend(
            qkv,
            _paged(cache, index),
            inputs.batch,
            num_heads=spec.num_heads,
            scale=spec.attention_scale,
            context=self._context,
            window=spec.layers[index].window,
            softcap=spec.attention_softcap,
        )
        return mixed


def _paged(cache: KVCache, index: int) -> PagedLayer:
    return PagedLayer(cache.pool(index), *cache.scales(index), cache.token_scales(index))


StepInputBuilder = InputBuilder | KernelAttention
