from __future__ import annotations

from tightpack.benchmarking.vocabulary import ordinary_token_ids


class SmallTokenizer:
    vocab_size = 6
    special_token_ids = frozenset({0, 5})
    eos_token_ids = (4,)

    def token(self, token_id: int) -> str | None:
        return None if token_id == 2 else f"t{token_id}"


def test_special_and_unused_ids_are_left_out() -> None:
    assert ordinary_token_ids(SmallTokenizer()) == [1, 3]
