"""How a step's queries are cut into tiles for paged attention: made once a step, shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightpack.torch_backend.transfer import send

# The fewest rows a tensor-core product takes.
_SMALLEST_TILE = 16
# Rows of a prompt's tile: two warpgroups of 64, or as many as few queries fill.
_LARGEST_TILE = 128
# Keys below which splitting a decode's costs more than it saves, and the most parts.
_KEYS_A_SPLIT = 256
_MOST_SPLITS = 32


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """block_tables: int32 [requests, blocks]. query_starts: int32 [requests + 1], the rows of each request's
    tokens in this step. context_lengths: int32 [requests], this step's tokens included. tiles: int32
    [tiles, 2], request and first query of each. queries_a_tile: at most. splits: of each tile's keys.
    """

    block_tables: Tensor
    query_starts: Tensor
    context_lengths: Tensor
    tiles: Tensor
    queries_a_tile: int
    splits: int

    def block_m(self, heads_a_group: int) -> int:
        """Rows of a tile: a power of two that holds its queries' heads."""
        rows = self.queries_a_tile * heads_a_group
        return max(_SMALLEST_TILE, 1 << (rows - 1).bit_length())


def decode_batch(
    block_tables: Tensor,
    context_lengths: Tensor,
    *,
    num_kv_heads: int,
    longest: int,
    multiprocessors: int,
) -> AttentionBatch:
    """One query a request, row i of the step being request i; every tensor is on the device, and good for as
    long as those given are: a recorded graph reads what they hold when it is replayed.

    longest: the longest context that will be attended to, which decides the splits.
    """
    requests = len(context_lengths)
    device = context_lengths.device
    starts = torch.arange(requests + 1, dtype=torch.int32, device=device)
    tiles = torch.stack([starts[:-1], torch.zeros_like(starts[:-1])], 1).contiguous()
    # Four programs a multiprocessor hide the latency of memory.
    wanted = -(-4 * multiprocessors // max(1, requests * num_kv_heads))
    splits = max(1, min(wanted, -(-longest // _KEYS_A_SPLIT), _MOST_SPLITS))
    # A power of two: every number of splits is compiled apart.
    splits = 1 << (splits.bit_length() - 1)
    return AttentionBatch(block_tables, starts, context_lengths, tiles, 1, splits)


def mixed_batch(
    block_tables: Tensor,
    query_counts: Sequence[int],
    context_lengths: Sequence[int],
    *,
    heads_a_group: int,
    device: torch.device,
) -> AttentionBatch:
    """Prompt chunks and decodes together, in row order."""
    queries_a_tile = max(1, min(max(query_counts), _LARGEST_TILE // heads_a_group))
    tiles = [
        (request, first)
        for request, count in enumerate(query_counts)
        for first in range(0, count, queries_a_tile)
    ]
    starts = torch.zeros(len(query_counts) + 1, dtype=torch.int32)
    starts[1:] = torch.tensor(query_counts, dtype=torch.int32).cumsum(0)
    return AttentionBatch(
        block_tables,
        send(starts, device),
        send(torch.tensor(context_lengths, dtype=torch.int32), device),
        send(torch.tensor(tiles, dtype=torch.int32), device),
        queries_a_tile,
        1,
    )
