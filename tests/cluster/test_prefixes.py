"""Guesses at what a replica has in its prefix cache."""

from __future__ import annotations

from tightpack.cluster.prefixes import BLOCK_BYTES, PrefixBook, prefix_hashes


def test_a_hash_a_whole_block() -> None:
    assert len(prefix_hashes(b"x" * (2 * BLOCK_BYTES + 100))) == 2
    assert prefix_hashes(b"x" * (BLOCK_BYTES - 1)) == ()
    assert len(prefix_hashes(b"x" * 10_000_000)) == 256


def test_matches_the_common_beginning() -> None:
    book = PrefixBook()
    shared, other = b"s" * 4 * BLOCK_BYTES, b"o" * BLOCK_BYTES
    book.note(prefix_hashes(shared + b"a" * BLOCK_BYTES))
    assert book.matched(prefix_hashes(shared + b"b" * BLOCK_BYTES)) == 4
    assert book.matched(prefix_hashes(other + shared)) == 0
    assert book.matched(()) == 0


def test_forgets_the_least_recently_sent_from_its_end() -> None:
    book = PrefixBook(capacity=6)
    old, new = prefix_hashes(b"o" * 4 * BLOCK_BYTES), prefix_hashes(b"n" * 4 * BLOCK_BYTES)
    book.note(old)
    book.note(new)
    assert book.matched(new) == 4
    assert book.matched(old) == 2  # its beginning, by which another prompt may still be matched
