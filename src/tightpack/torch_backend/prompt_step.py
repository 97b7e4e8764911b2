"""Steps with prompt tokens, recorded in pieces: what lies between two attentions, by padded token counts.

Attention depends on the lengths of a step's requests and runs eagerly. Everything else treats rows alone, so
a stretch (output projection and MLP of a layer, norm, projection, rotation and cache write of the next) can
be replayed at any count up to the one it was recorded with. Stretches hand over through buffers that all
layers and sizes share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tightpack.architectures.model_spec import ModelSpec
from tightpack.torch_backend.attention import Attention
from tightpack.torch_backend.decoder import Decoder
from tightpack.torch_backend.kv_cache import KVCache
from tightpack.torch_backend.step_inputs import StepInputs

# Runs before a recording: kernels are chosen and libraries make their workspaces.
_WARM_UPS = 2


def token_counts(largest: int) -> tuple[int, ...]:
    """Counts to pad to, up to and with `largest`: every 64, from 512 every 128, from 1024 every 256."""
    counts = [*range(64, 513, 64), *range(640, 1025, 128), *range(1280, largest + 1, 256)]
    return tuple(sorted({count for count in counts if count < largest} | {largest}))


class PromptStep:
    """`Decoder.forward` over buffers that stay where they are, of `sizes` rows.

    spare_slots: where a row that pads writes its keys and values. spec: this rank's.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        attention: Attention,
        *,
        sizes: Sequence[int],
        spare_slots: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self._decoder, self._cache, self._attention = decoder, cache, attention
        self._sizes, self._spare_slots = tuple(sizes), spare_slots
        spec: ModelSpec = decoder.spec
        self._num_layers = spec.num_layers
        rows, device = self._sizes[-1], spare_slots.device
        mixed = spec.num_heads * spec.head_dim
        self._token_ids = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self._slots = spare_slots.repeat(rows)
        self._x = torch.zeros((rows, spec.hidden_size), dtype=dtype, device=device)
        qkv = mixed + 2 * spec.num_kv_heads * spec.head_dim
        self._qkv = torch.zeros((rows, qkv), dtype=dtype, device=device)
        self._mixed = torch.zeros((rows, mixed), dtype=dtype, device=device)
        self._graphs: dict[int, list[torch.cuda.CUDAGraph]] = {}

    @property
    def largest(self) -> int:
        return self._sizes[-1]

    def size_for(self, count: int) -> int:
        """The smallest size that holds `count` tokens."""
        return next(size for size in self._sizes if size >= count)

    def recorded(self, size: int) -> bool:
        """Whether a step of `size` rows replays graphs."""
        return size in self._graphs

    def forget(self) -> None:
        """Give up what was recorded."""
        self._graphs.clear()

    def record(self, pool: Any) -> None:
        """Record every stretch at every size, the largest first, in the memory of `pool`. CUDA only.

        Again once layers have changed. All rows pad meanwhile, so that only the spare block is written.
        """
        self.forget()
        self._token_ids.zero_()
        self._positions.zero_()
        self._slots.copy_(self._spare_slots.repeat(self.largest))
        for size in reversed(self._sizes):
            for _ in range(_WARM_UPS):
                for index in range(self._num_layers + 1):
                    self._stretch(index, size)
            torch.cuda.synchronize()
            graphs = []
            for index in range(self._num_layers + 1):
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[-1], pool=pool):
                    self._stretch(index, size)
            self._graphs[size] = graphs

    def __call__(self, inputs: StepInputs) -> Tensor:
        """As `Decoder.forward`, `largest` tokens at the most; good until the next step."""
        count = inputs.num_tokens
        size = self.size_for(count)
        self._take(inputs, size)
        graphs = self._graphs.get(size)
        for index in range(self._num_layers + 1):
            if graphs is None:
                self._stretch(index, size)
            else:
                graphs[index].replay()
            if index < self._num_layers:
                mixed = self._attention.mix(self._cache, index, self._qkv[:count], inputs)
                self._mixed[:count].copy_(mixed)
        return self._x[:count]

    def _take(self, inputs: StepInputs, size: int) -> None:
        """The step's rows; those behind them write to the spare block, and have mixed nothing."""
        count, a_token = inputs.num_tokens, len(self._spare_slots)
        self._token_ids[:count].copy_(inputs.token_ids)
        self._positions[:count].copy_(inputs.positions)
        self._slots[: count * a_token].copy_(inputs.slots)
        if count < size:
            self._token_ids[count:size].zero_()
            self._positions[count:size].zero_()
            self._slots[count * a_token : size * a_token].copy_(self._spare_slots.repeat(size - count))
            self._mixed[count:size].zero_()

    def _stretch(self, index: int, size: int) -> None:
        x = self._x[:size]
        slots = self._slots[: size * len(self._spare_slots)]
        inputs = StepInputs((), self._token_ids[:size], self._positions[:size], slots, {})
        if index == 0:
            x.copy_(self._decoder.embed(inputs.token_ids))
        qkv = self._decoder.stretch(index, x, self._mixed[:size], inputs, self._cache, self._attention)
        if qkv is not None:
            self._qkv[:size].copy_(qkv)
