"""A step's plan: token counts per request. There is no prefill flag; a chunk says what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tightpack.requests.request import Request


class Chunk(NamedTuple):
    """Compute tokens [first_token, first_token + num_tokens) of `request.token_ids`.

    block_table: the request's KV blocks in order, enough for first_token + num_tokens positions or more;
        position p lives in block_table[p // block_size] at offset p % block_size. Blocks that the chunk
        writes belong to this request alone; those before may be shared. The same tuple comes again until
        a block is added, so that what is derived from it can be kept.

    A named tuple, since one is made for each running request at every step: a frozen dataclass takes three
    times as long.
    """

    request: Request
    first_token: int
    num_tokens: int
    block_table: tuple[int, ...]

    @property
    def samples(self) -> bool:
        """Whether this chunk reaches the last known token, so that its logits give the next."""
        return self.first_token + self.num_tokens == len(self.request.token_ids)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes, and which requests lost their blocks to make room for it.

    Chunks come one a request, in an order that queues and policy alone decide: running requests by age (with
    chunked prefill those that decode, then those with prompt left), then the admitted. No chunk reads what
    another of the same step writes.
    """

    chunks: tuple[Chunk, ...]
    evicted: tuple[Request, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)

    def __bool__(self) -> bool:
        return bool(self.chunks)
