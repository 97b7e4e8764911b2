"""FlashInfer's attention on the shapes of this project's, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import torch
from gpu.cases import STORES, Case, Sizes, filled, normal
from torch import Tensor


def flashinfer_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Shapes are named as those of `cases.all_cases`: nothing where it is absent or does not build."""
    if importlib.util.find_spec("flashinfer") is None:
        return
    try:
        yield from _cases(importlib.import_module("flashinfer"), sizes, device)
    # It compiles when it plans; a missing compiler must not end the check of this project's kernels.
    except Exception as error:
        print(f"FlashInfer is left out: {type(error).__name__}: {error}", file=sys.stderr)


def _cases(library: Any, sizes: Sizes, device: torch.device) -> Iterator[Case]:
    heads, kv_heads, width, block = sizes.heads, sizes.kv_heads, sizes.width, 16
    workspace = torch.zeros(128 * 2**20, dtype=torch.uint8, device=device)
    nothing = torch.zeros(0, dtype=torch.float64)
    for name, dtype, item in STORES:
        if dtype == torch.int8:
            continue
        for requests, queries in (*((count, 1) for count in sizes.requests), (1, sizes.prompt)):
            length = sizes.context if queries == 1 else sizes.prompt
            pages = -(-length // block)
            layer, tables = filled(device, dtype, requests, pages, kv_heads, block, width)
            q = normal((requests * queries, heads * width), device).view(-1, heads, width)
            wrapper = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
            counts = torch.arange(requests + 1, dtype=torch.int32)
            wrapper.plan(
                counts * queries,
                counts * pages,
                tables.flatten(),
                torch.full((requests,), length - (pages - 1) * block, dtype=torch.int32),
                heads,
                kv_heads,
                width,
                block,
                causal=True,
                q_data_type=q.dtype,
                kv_data_type=dtype,
            )
            pool, out = layer.pool.view(len(layer.pool), 2, kv_heads, block, width), torch.empty_like(q)

            def run(w: Any = wrapper, q: Tensor = q, pool: Tensor = pool, out: Tensor = out) -> Tensor:
                mixed: Tensor = w.run(q, pool, out=out)
                return mixed

            run()
            pairs = length if queries == 1 else (length + 1) / 2
            yield Case(
                f"FlashInfer, {name} cache",
                f"{requests} x {queries} of {length}",
                run,
                lambda: nothing,
                0,
                requests * length * 2 * kv_heads * width * item + 4 * requests * queries * heads * width,
                int(4 * requests * queries * pairs * heads * width),
            )
