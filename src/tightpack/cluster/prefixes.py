"""Which replica is likely to have a prompt's beginning in its prefix cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

# A hash stands for everything up to the end of its block. Blocks of some 64 tokens of text: shorter ones
# would say little that the engine's blocks of 16 tokens could save.
BLOCK_BYTES = 256
# Prompts longer than this are told apart by their beginnings alone: 64 KiB are some 16,000 tokens.
_MAX_BLOCKS = 256


def prefix_hashes(prompt: bytes) -> tuple[bytes, ...]:
    """One for each whole block of the prompt, each of all bytes up to its end."""
    running = blake2b(digest_size=12)
    hashes = []
    for start in range(0, min(len(prompt) - BLOCK_BYTES + 1, _MAX_BLOCKS * BLOCK_BYTES), BLOCK_BYTES):
        running.update(prompt[start : start + BLOCK_BYTES])
        hashes.append(running.digest())
    return tuple(hashes)


class PrefixBook:
    """The prompt beginnings that one replica was sent, the least recently sent forgotten first.

    capacity: blocks. A replica forgets by its own rule, so this is a guess: 32,768 blocks of 64 tokens are
    two million tokens, and 4 MB here.
    """

    def __init__(self, capacity: int = 32_768) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def matched(self, hashes: Sequence[bytes]) -> int:
        """The leading blocks that were sent before."""
        low, high = 0, len(hashes)
        # A block is kept at least as long as those behind it, so the first that is missing can be bisected.
        while low < high:
            middle = (low + high) // 2
            if hashes[middle] in self._blocks:
                low = middle + 1
            else:
                high = middle
        return low

    def note(self, hashes: Sequence[bytes]) -> None:
        """A prompt was sent. Its end is entered first, to be forgotten first."""
        for one in reversed(hashes):
            self._blocks[one] = None
            self._blocks.move_to_end(one)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)
