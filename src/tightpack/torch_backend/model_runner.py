"""One rank's decoder and KV cache, and what it computes of a step: no requests, no sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.schemes.quantized import KVCacheFormat
from tightpack.torch_backend.decoder import Decoder
from tightpack.torch_backend.kv_cache import KVCache
from tightpack.torch_backend.rank_group import ALONE, RankGroup
from tightpack.torch_backend.rounded_kv_cache import make_kv_cache
from tightpack.torch_backend.sizing import default_num_blocks
from tightpack.torch_backend.step_inputs import InputBuilder, Piece
from tightpack.torch_backend.weights import load_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """The same on every rank. device: of several ranks on CUDA, that of rank 0; others have the next ones.

    num_blocks: KV blocks; None takes what fits once the weights are loaded.
    """

    dtype: torch.dtype
    kv_format: KVCacheFormat
    device: torch.device
    block_size: int
    num_blocks: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_threads: int | None = None
    gpu_memory_utilization: float = 0.9


@dataclass(frozen=True, slots=True)
class Computed:
    """hidden: [tokens, hidden_size] before the final norm; starts: the first row of each piece."""

    hidden: Tensor
    starts: tuple[int, ...]


class Runner(Protocol):
    """What an executor computes with: one rank, or one that leads others."""

    @property
    def num_blocks(self) -> int: ...

    def forward(self, pieces: Sequence[Piece], /) -> Computed:
        """Write the pieces' keys and values; keep the hidden states for `logits`."""

    def logits(self, rows: Sequence[int], /) -> Tensor:
        """Float32 [rows, vocab_size], of rows of the last `forward`."""

    def clear(self, pieces: Sequence[Piece], /) -> None:
        """Leave finite numbers where the pieces wrote (see `KVCache`)."""

    def close(self) -> None: ...


class ModelRunner:
    """A `Runner` of one rank. Making it loads the weights; `allocate` makes the cache, once all ranks have
    met."""

    def __init__(self, checkpoint: Checkpoint, options: RunnerOptions, group: RankGroup = ALONE) -> None:
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        self._options, self._group = options, group
        self.device = rank_device(options.device, group)
        with torch.inference_mode():
            weights = load_weights(checkpoint, options.dtype, self.device, group)
            self._decoder: Decoder | None = Decoder(checkpoint.spec, weights, options.max_model_len, group)
        self._spec = self._decoder.spec
        self._inputs = InputBuilder(
            block_size=options.block_size,
            num_kv_heads=self._spec.num_kv_heads,
            windows=frozenset(layer.window for layer in self._spec.layers),
            dtype=options.dtype,
            device=self.device,
        )
        self._cache: KVCache | None = None
        self._hidden: Tensor | None = None

    def allocate(self) -> None:
        """Make the KV cache: of several ranks, as many blocks as fit in each."""
        options = self._options
        num_blocks = options.num_blocks
        with torch.inference_mode():
            if num_blocks is None:
                fitting = default_num_blocks(
                    self._spec,
                    block_size=options.block_size,
                    dtype=options.dtype,
                    kv_format=options.kv_format,
                    device=self.device,
                    max_num_seqs=options.max_num_seqs,
                    max_num_batched_tokens=options.max_num_batched_tokens,
                    max_model_len=options.max_model_len,
                    gpu_memory_utilization=options.gpu_memory_utilization,
                    sharing=self._group.size,
                )
                num_blocks = self._group.least(fitting, self.device)
            self._cache = make_kv_cache(
                self._spec, num_blocks, options.block_size, options.kv_format, options.dtype, self.device
            )

    @property
    def num_blocks(self) -> int:
        return self._parts()[1].num_blocks

    def forward(self, pieces: Sequence[Piece]) -> Computed:
        decoder, cache = self._parts()
        inputs = self._inputs.build(pieces)
        # Not kept through the pass: a step that runs out of memory is tried again in halves.
        self._hidden = None
        self._hidden = decoder.forward(inputs, cache)
        return Computed(self._hidden, inputs.starts)

    def logits(self, rows: Sequence[int]) -> Tensor:
        decoder, _ = self._parts()
        if self._hidden is None:
            raise RuntimeError("logits were asked for before anything was computed")
        return decoder.logits(self._hidden[list(rows)])

    def clear(self, pieces: Sequence[Piece]) -> None:
        _, cache = self._parts()
        for piece in pieces:
            cache.clear(self._inputs.slots_of(piece))

    def close(self) -> None:
        self._decoder = self._cache = self._hidden = None
        self._group.leave()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _parts(self) -> tuple[Decoder, KVCache]:
        if self._decoder is None or self._cache is None:
            raise RuntimeError("the executor is closed")
        return self._decoder, self._cache


def rank_device(device: torch.device, group: RankGroup) -> torch.device:
    if device.type == "cpu" or group.size == 1:
        return device
    return torch.device("cuda", (device.index or 0) + group.rank)
