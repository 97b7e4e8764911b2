"""Which KV blocks each request holds, and the sharing of equal prefixes between requests.

Paged KV memory follows Kwon et al. 2023 (PagedAttention). A full block is found again by a digest over the
digest of the block before it and its own token ids, which thus names everything from position 0 on.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from tightpack.requests.request import Request
from tightpack.scheduling.block_pool import BlockPool
from tightpack.scheduling.limits import blocks_for


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """16 bytes that name the keys and values of a block: they depend on its tokens and all before them."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


@dataclass(slots=True)
class _Table:
    """One request's blocks in order of position. Digests outlive preemption: hashing is done once a token."""

    blocks: tuple[int, ...] = ()
    num_registered: int = 0
    digests: list[bytes] = field(default_factory=list)


class KVBlocks:
    """Block tables of all requests over one pool.

    Life of a request: `lookup` and `start` (blocks for all its known tokens), `extend` as it decodes,
    `commit` after each step, `free` when it is preempted, `forget` when it ends. A request writes only
    blocks that it alone holds: shared ones are full and computed, and at least one token is left to compute.

    num_queried_tokens, num_hit_tokens: tokens looked up and found, counted each time a request starts.
    """

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0
        self._caching = enable_prefix_caching
        self._pool = BlockPool(num_blocks)
        self._tables: dict[Request, _Table] = {}

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that no request holds; those that cache a prefix count, since they can be reused."""
        return self._pool.num_free

    @property
    def usage(self) -> float:
        """Share of the pool that requests hold, 0 to 1."""
        return 1 - self._pool.num_free / self._pool.num_blocks

    def block_table(self, request: Request) -> tuple[int, ...]:
        """The request's blocks in order of position; the same object until a block is added."""
        return self._tables[request].blocks

    def lookup(self, request: Request) -> tuple[int, ...]:
        """The computed blocks that already hold the head of `request.token_ids`; nothing is taken.

        At least one token is left out, so that there are logits to sample from. Requests that want the
        log-probabilities of their prompt find nothing: they need the logits of every position.
        """
        if not self._may_hit(request):
            return ()
        table = self._tables.setdefault(request, _Table())
        found: list[int] = []
        for index in range((len(request.token_ids) - 1) // self.block_size):
            block = self._pool.find(self._digest(request, table, index))
            if block is None:
                break
            found.append(block)
        return tuple(found)

    def start(self, request: Request, hit: tuple[int, ...], *, keep_free: int = 0) -> bool:
        """Take blocks for all known tokens: those of `hit` (from `lookup`) and new ones for the rest.

        All or nothing: False when fewer than `keep_free` blocks would stay free.
        """
        num_new = blocks_for(len(request.token_ids), self.block_size) - len(hit)
        num_revived = sum(self._pool.num_holders(block) == 0 for block in hit)
        if self._pool.num_free - num_new - num_revived < keep_free:
            return False
        for block in hit:  # before taking, which could give them up
            self._pool.share(block)
        table = self._tables.setdefault(request, _Table())
        table.blocks = hit + self._pool.take(num_new)
        table.num_registered = len(hit)
        if self._may_hit(request):
            self.num_queried_tokens += len(request.token_ids)
            self.num_hit_tokens += len(hit) * self.block_size
        return True

    def extend(self, request: Request, num_tokens: int) -> bool:
        """Make room for `num_tokens` positions in all. All or nothing: False when too few blocks are free."""
        table = self._tables[request]
        if num_tokens <= len(table.blocks) * self.block_size:  # nearly always: a block lasts many steps
            return True
        num_missing = blocks_for(num_tokens, self.block_size) - len(table.blocks)
        if num_missing > self._pool.num_free:
            return False
        table.blocks += self._pool.take(num_missing)
        return True

    def commit(self, request: Request) -> None:
        """Let others find the blocks that `request.num_computed_tokens` now fills."""
        if not self._caching:
            return
        table = self._tables[request]
        for index in range(table.num_registered, request.num_computed_tokens // self.block_size):
            self._pool.register(table.blocks[index], self._digest(request, table, index))
            table.num_registered = index + 1

    def free(self, request: Request) -> None:
        """Give up the request's blocks. The tail goes first, since without the head it is never found."""
        table = self._tables.get(request)
        if table is not None:
            self._pool.release(reversed(table.blocks))
            table.blocks = ()

    def forget(self, request: Request) -> None:
        """Give up the request's blocks and all that was noted about it."""
        self.free(request)
        self._tables.pop(request, None)

    def num_shared(self, request: Request) -> int:
        """Leading blocks that others hold too: giving them up would free nothing and lose nothing."""
        blocks = self._tables[request].blocks
        for count, block in enumerate(blocks):
            if self._pool.num_holders(block) == 1:
                return count
        return len(blocks)

    def _may_hit(self, request: Request) -> bool:
        return self._caching and request.params.prompt_logprobs is None

    def _digest(self, request: Request, table: _Table, index: int) -> bytes:
        digests = table.digests
        while len(digests) <= index:
            first = len(digests) * self.block_size
            tokens = request.token_ids[first : first + self.block_size]
            digests.append(block_digest(digests[-1] if digests else b"", tokens))
        return digests[index]
