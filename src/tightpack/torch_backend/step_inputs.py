"""What a step's pieces become: flat token and index tensors, built once and shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.torch_backend.transfer import send

IntArray = NDArray[np.int64]

# Decodes attend together, padded to the longest context among them; one whose context is less than this share
# of the longest goes to another group, so that padding at most doubles the work and groups stay few.
_PADDING_SHARE = 0.5
# Below this many blocks padding is cheaper than another group's calls.
_SMALL_CONTEXT_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk without its request: what crosses from the rank that schedules to the others.

    tokens: to compute, at the positions from first_token on. block_table: as in `scheduling.plan.Chunk`.
    """

    tokens: tuple[int, ...]
    first_token: int
    block_table: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class DecodeBuffers:
    """Views of one int64 array on the device. token_ids, positions: [size]; block_tables: [size, width].

    Rows that pad hold token 0 at position 0 of a block that is nobody's.
    """

    token_ids: Tensor
    positions: Tensor
    block_tables: Tensor

    @property
    def size(self) -> int:
        return self.token_ids.shape[0]


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Single-token pieces that attend together: rows [start, start + size) of the step.

    blocks: gather order [2 * num_kv_heads, size, blocks], flat.
    mask: additive [num_kv_heads * size, 1, context].
    """

    start: int
    size: int
    blocks: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A piece of several tokens: rows [start, start + size) of the step.

    blocks: gather order [2 * num_kv_heads, blocks], flat; None where the piece attends to itself alone.
    mask: additive [size, context]; None where plain causal masking is meant.
    """

    start: int
    size: int
    context: int
    blocks: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    decodes: tuple[DecodeGroup, ...]
    prompts: tuple[PromptPart, ...]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """starts: the first row of each piece, in the order given; decodes have rows before prompt parts.

    slots: [tokens * 2 * num_kv_heads], where the cache takes each token's keys and values.
    attention: by window. batch: in their place for `kernel_attention`, whose slots are one a token.
    """

    starts: tuple[int, ...]
    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    attention: dict[int | None, AttentionInputs]
    batch: Any = None

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]


@dataclass(frozen=True, slots=True)
class InputBuilder:
    """windows: the distinct attention windows of the model's layers."""

    block_size: int
    num_kv_heads: int
    windows: frozenset[int | None]
    dtype: torch.dtype
    device: torch.device

    def build(self, pieces: Sequence[Piece]) -> StepInputs:
        # Longest contexts first, so that neighbours can share a group.
        order = sorted(
            range(len(pieces)),
            key=lambda i: (
                pieces[i].num_tokens > 1,
                -pieces[i].first_token if pieces[i].num_tokens == 1 else 0,
            ),
        )
        ordered = [pieces[i] for i in order]
        starts = np.cumsum([0, *(c.num_tokens for c in ordered)]).tolist()
        tokens: list[int] = []
        for c in ordered:
            tokens += c.tokens
        positions = np.concatenate([np.arange(c.first_token, c.first_token + c.num_tokens) for c in ordered])
        num_decodes = sum(c.num_tokens == 1 for c in ordered)
        tables = [np.asarray(c.block_table, dtype=np.int64) for c in ordered]
        blocks = np.concatenate(
            [
                t[positions[s : s + c.num_tokens] // self.block_size]
                for c, t, s in _zip(ordered, tables, starts)
            ]
        )
        attention = {}
        for window in self.windows:
            decodes = self._decode_groups(ordered[:num_decodes], tables, window)
            prompts = tuple(
                self._prompt_part(piece, table, start, window)
                for piece, table, start in list(_zip(ordered, tables, starts))[num_decodes:]
            )
            attention[window] = AttentionInputs(decodes, prompts)
        start_of = dict(zip(order, starts, strict=False))
        return StepInputs(
            starts=tuple(start_of[i] for i in range(len(pieces))),
            token_ids=self._to_device(np.asarray(tokens, dtype=np.int64)),
            positions=self._to_device(positions),
            slots=self._to_device(self._slots(blocks, positions % self.block_size)),
            attention=attention,
        )

    def of_decode(self, buffers: DecodeBuffers) -> StepInputs:
        """The same of a padded decode step, computed where its buffers are, without waiting for them.

        Every row gathers its whole table: for a few blocks, or where nothing else can be had.
        """
        size, tables, positions = self.block_size, buffers.block_tables, buffers.positions
        heads = torch.arange(2 * self.num_kv_heads, device=tables.device)
        block = tables.gather(1, (positions // size).unsqueeze(1))
        slots = ((block * len(heads) + heads) * size + (positions % size).unsqueeze(1)).view(-1)
        blocks = (tables.reshape(1, -1) * len(heads) + heads.unsqueeze(1)).view(-1)
        places = torch.arange(tables.shape[1] * size, device=tables.device)
        attention = {}
        for window in self.windows:
            hidden = places > positions.unsqueeze(1)
            if window is not None:
                hidden |= places <= (positions - window).unsqueeze(1)
            mask = torch.zeros(hidden.shape, dtype=self.dtype, device=tables.device)
            mask = mask.masked_fill_(hidden, -torch.inf).repeat(self.num_kv_heads, 1).unsqueeze(1)
            group = DecodeGroup(0, buffers.size, blocks, mask)
            attention[window] = AttentionInputs((group,), ())
        return StepInputs(tuple(range(buffers.size)), buffers.token_ids, positions, slots, attention)

    def slots_in(self, block: int) -> Tensor:
        """The slots that a token at the first position of `block` writes."""
        return self._to_device(self._slots(np.asarray([block]), np.asarray([0])))

    def slots_of(self, piece: Piece) -> Tensor:
        """The cache slots that the piece writes."""
        positions = np.arange(piece.first_token, piece.first_token + piece.num_tokens)
        blocks = np.asarray(piece.block_table, dtype=np.int64)[positions // self.block_size]
        return self._to_device(self._slots(blocks, positions % self.block_size))

    def _slots(self, blocks: IntArray, offsets: IntArray) -> IntArray:
        heads = np.arange(2 * self.num_kv_heads)
        rows = blocks[:, None] * len(heads) + heads
        slots: IntArray = (rows * self.block_size + offsets[:, None]).reshape(-1)
        return slots

    def _gather_order(self, blocks: IntArray) -> Tensor:
        """Rows of the pool for `blocks` [...], head by head: [2 * num_kv_heads, ...], flat."""
        heads = np.arange(2 * self.num_kv_heads)
        return self._to_device((blocks.reshape(1, -1) * len(heads) + heads[:, None]).reshape(-1))

    def _decode_groups(
        self, pieces: Sequence[Piece], tables: Sequence[IntArray], window: int | None
    ) -> tuple[DecodeGroup, ...]:
        size = self.block_size
        ends = [c.first_token + 1 for c in pieces]
        begins = [0 if window is None else max(0, end - window) for end in ends]
        spans = [(begin // size, -(-end // size)) for begin, end in zip(begins, ends, strict=True)]
        groups = []
        start = 0
        while start < len(pieces):
            widest = spans[start][1] - spans[start][0]
            stop = start + 1
            while stop < len(pieces):
                width = spans[stop][1] - spans[stop][0]
                if widest > _SMALL_CONTEXT_BLOCKS and width < widest * _PADDING_SHARE:
                    break
                widest = max(widest, width)
                stop += 1
            blocks = np.empty((stop - start, widest), dtype=np.int64)
            for row, index in enumerate(range(start, stop)):
                first, last = spans[index]
                blocks[row, : last - first] = tables[index][first:last]
                blocks[row, last - first :] = tables[index][first]  # masked, but finite
            origin = np.asarray([spans[i][0] * size for i in range(start, stop)])[:, None]
            places = np.arange(widest * size) + origin
            begin = np.asarray(begins[start:stop])[:, None]
            end = np.asarray(ends[start:stop])[:, None]
            mask = self._additive((places >= begin) & (places < end))
            mask = mask.repeat(self.num_kv_heads, 1).unsqueeze(1)
            groups.append(DecodeGroup(start, stop - start, self._gather_order(blocks), mask))
            start = stop
        return tuple(groups)

    def _prompt_part(self, piece: Piece, table: IntArray, start: int, window: int | None) -> PromptPart:
        first, count = piece.first_token, piece.num_tokens
        if first == 0 and (window is None or count <= window):
            return PromptPart(start, count, count, blocks=None, mask=None)
        begin = 0 if window is None else max(0, first + 1 - window)
        first_block = begin // self.block_size
        origin = first_block * self.block_size
        end = first + count
        queries = np.arange(first, end)[:, None]
        keys = np.arange(origin, end)
        visible = keys <= queries
        if window is not None:
            visible &= keys > queries - window
        blocks = self._gather_order(table[first_block : -(-end // self.block_size)])
        return PromptPart(start, count, end - origin, blocks, self._additive(visible))

    def _additive(self, visible: NDArray[np.bool_]) -> Tensor:
        mask = torch.zeros(visible.shape, dtype=self.dtype)
        mask.masked_fill_(torch.from_numpy(~visible), -torch.inf)
        return send(mask, self.device)

    def _to_device(self, array: IntArray) -> Tensor:
        return send(torch.from_numpy(array), self.device)


def _zip(
    pieces: Sequence[Piece], tables: Sequence[IntArray], starts: Sequence[int]
) -> zip[tuple[Piece, IntArray, int]]:
    return zip(pieces, tables, starts[: len(pieces)], strict=True)
