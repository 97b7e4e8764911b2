"""The tokens that random prompts are made of."""

from __future__ import annotations

from tightpack.checkpoints.tokenizer import Tokenizer


def ordinary_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Every token id that stands for text: special ones (end of sequence, chat markers, padding) left out."""
    special = tokenizer.special_token_ids | set(tokenizer.eos_token_ids)
    return [i for i in range(tokenizer.vocab_size) if i not in special and tokenizer.token(i) is not None]
