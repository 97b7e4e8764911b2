"""What every executor asks of a chunk before it computes it."""

from __future__ import annotations

from tightpack.scheduling.plan import Chunk


def reason_against(chunk: Chunk, *, max_model_len: int, vocab_size: int) -> str | None:
    """Why the chunk cannot be computed by a model of this context and vocabulary; None where it can."""
    end = chunk.first_token + chunk.num_tokens
    if end > max_model_len:
        return f"position {end - 1} is outside the context of {max_model_len} tokens"
    tokens = chunk.request.token_ids[chunk.first_token : end]
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        wrong = next(t for t in tokens if not 0 <= t < vocab_size)
        return f"token id {wrong} is outside the vocabulary of {vocab_size}"
    bias = chunk.request.params.logit_bias
    if bias and max(bias) >= vocab_size:
        return f"logit_bias names token id {max(bias)}, outside the vocabulary of {vocab_size}"
    return None
