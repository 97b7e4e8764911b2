"""Attention of steps with prompt tokens by FlashInfer (Ye et al. 2025), where it is installed and faster.

The cache is handed over as it lies: a layer's pool [num_blocks, 2 * num_kv_heads, block_size, head_dim], keys
before values, is FlashInfer's layout HND, [pages, 2, num_kv_heads, page_size, head_dim]. Decode steps stay
with the Triton kernel: FlashInfer plans each step on the host, which a recorded graph cannot do. Calls are
those of FlashInfer 0.6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.architectures.model_spec import ModelSpec
from tightpack.torch_backend.kernel_attention import KernelAttention
from tightpack.torch_backend.kv_cache import KVCache
from tightpack.torch_backend.step_inputs import StepInputs
from tightpack.torch_backend.transfer import pinned, send
from tightpack.torch_backend.triton_kernels import KernelContext

# Of steps that are not recorded: prompts alone, or beside them requests with one token.
Kind = Literal["prompts", "mixed"]
KINDS: tuple[Kind, ...] = ("prompts", "mixed")

# What FlashInfer's documentation recommends for the parts of divided contexts.
_WORKSPACE_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """FlashInfer's wrappers by window, planned for a step: what stands in `StepInputs.batch` for it."""

    wrappers: Mapping[int | None, Any]


class FlashInferAttention(KernelAttention):
    """KernelAttention but for steps of `kinds`, which FlashInfer attends in.

    library: the module flashinfer. dtype: of queries; storage: of the cache, `dtype` or float8_e4m3fn.
    """

    def __init__(
        self,
        spec: ModelSpec,
        block_size: int,
        device: torch.device,
        context: KernelContext,
        *,
        longest: int,
        library: Any,
        dtype: torch.dtype,
        storage: torch.dtype,
    ) -> None:
        super().__init__(spec, block_size, device, context, longest=longest)
        self._dtype, self._storage = dtype, storage
        self.kinds: frozenset[Kind] = frozenset(KINDS)
        workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        windows = dict.fromkeys(layer.window for layer in spec.layers)
        # Two sets, since the plan of the step before may not have been copied when the next is made.
        self._wrappers = [
            {window: library.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND") for window in windows}
            for _ in range(2)
        ]

    def _batch(self, tables: NDArray[np.int32], counts: Sequence[int], contexts: Sequence[int]) -> object:
        kind: Kind = "mixed" if min(counts) == 1 else "prompts"
        if kind not in self.kinds:
            return super()._batch(tables, counts, contexts)
        spec, size = self._spec, self._size
        pages = [-(-context // size) for context in contexts]
        indices = np.concatenate([table[:count] for table, count in zip(tables, pages, strict=True)])
        last = [context - (count - 1) * size for context, count in zip(contexts, pages, strict=True)]
        places = (
            self._on_host(np.cumsum([0, *counts])),
            self._on_host(np.cumsum([0, *pages])),
            send(torch.from_numpy(indices), self._device),
            self._on_host(np.asarray(last)),
        )
        self._wrappers.reverse()
        for window, wrapper in self._wrappers[0].items():
            wrapper.plan(
                *places,
                spec.num_heads,
                spec.num_kv_heads,
                spec.head_dim,
                size,
                causal=True,
                sm_scale=spec.attention_scale,
                # Positions to the left of the query's own, which our window counts.
                window_left=-1 if window is None else window - 1,
                logits_soft_cap=spec.attention_softcap,
                q_data_type=self._dtype,
                kv_data_type=self._storage,
            )
        return PlannedBatch(self._wrappers[0])

    def mix(self, cache: KVCache, index: int, qkv: Tensor, inputs: StepInputs) -> Tensor:
        if not isinstance(inputs.batch, PlannedBatch):
            return super().mix(cache, index, qkv, inputs)
        spec, pool = self._spec, cache.pool(index)
        queries = qkv[:, : spec.num_heads * spec.head_dim].view(len(qkv), spec.num_heads, spec.head_dim)
        key_scale, value_scale = cache.scales(index)
        mixed: Tensor = inputs.batch.wrappers[spec.layers[index].window].run(
            queries,
            pool.view(len(pool), 2, spec.num_kv_heads, *pool.shape[2:]),
            k_scale=key_scale,
            v_scale=value_scale,
            # Its own would be filled with zeros first.
            out=qkv.new_empty(queries.shape),
        )
        return mixed.flatten(1)

    def _on_host(self, numbers: NDArray[np.int64]) -> Tensor:
        """int32 for `plan`, which reads them on the host and copies them."""
        return pinned(torch.from_numpy(numbers.astype(np.int32)), self._device)
