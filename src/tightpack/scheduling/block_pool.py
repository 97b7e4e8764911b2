"""The physical KV blocks: who holds each, what each is known to contain, which is given up first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Reference-counted blocks 0..num_blocks-1, of which the unreferenced keep their contents until reused.

    A block is in one of three states:
        held: one or more requests refer to it;
        cached: nobody does, but its contents have a digest under which they may be found again;
        blank: nobody does and its contents are worth nothing.
    Blank blocks are given out first, then cached ones, least recently released first (LRU).
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._holders = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._digest_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._blank) + len(self._cached)

    def num_holders(self, block: int) -> int:
        return self._holders[block]

    def take(self, count: int) -> tuple[int, ...]:
        """`count` blocks with one holder each and no contents; the caller checked `num_free`."""
        return tuple(self._take_one() for _ in range(count))

    def share(self, block: int) -> None:
        """One more holder of a block that `find` returned."""
        if self._holders[block] == 0:
            del self._cached[block]
        self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less of each, in the given order: what comes first is given up first."""
        for block in blocks:
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._digest_of:
                    self._cached[block] = None
                else:
                    self._blank.append(block)

    def find(self, digest: bytes) -> int | None:
        """The held or cached block with these contents."""
        return self._block_of.get(digest)

    def register(self, block: int, digest: bytes) -> None:
        """`block` holds the contents named by `digest`, unless another is already found under it."""
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def _take_one(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._digest_of.pop(block)]
        self._holders[block] = 1
        return block
