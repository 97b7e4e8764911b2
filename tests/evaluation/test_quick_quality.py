"""The same numbers as the evaluation in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tightpack.checkpoints.open import open_checkpoint
from tightpack.evaluation.comparison import measure
from tightpack.evaluation.quick_quality import compare, log_probabilities, sample_sequences, sample_text
from tightpack.native_cpu.executor import NativeExecutor

VOCABULARY = 40


class Fixed:
    """An executor whose logits are drawn beforehand."""

    block_size = 4

    def __init__(self, logits: list[np.ndarray]) -> None:
        self._logits = iter(logits)

    def logits(self, chunks):
        [chunk] = chunks
        found = next(self._logits)
        assert chunk.num_tokens == len(found)
        assert len(chunk.block_table) == -(-len(found) // self.block_size)
        return found


def drawn(seed: int, lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(scale=3, size=(length, VOCABULARY)).astype(np.float32) for length in lengths]


def test_it_agrees_with_the_evaluation() -> None:
    lengths = [9, 9, 9]
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(3, 9))
    sequences = [tuple(map(int, row)) for row in tokens]
    reference = drawn(1, lengths)
    model = [a + b / 4 for a, b in zip(reference, drawn(2, lengths), strict=True)]
    p = list(log_probabilities(Fixed(reference), sequences))
    found = compare(p, log_probabilities(Fixed(model), sequences))
    expected = measure(tokens, map(torch.from_numpy, model), map(torch.from_numpy, reference))
    assert found.kl == pytest.approx(expected.kl, rel=1e-5)
    assert found.top1_agreement == pytest.approx(expected.top1_agreement)
    assert found.tokens == expected.tokens == 24


def test_a_model_against_itself_costs_nothing(tiny_model) -> None:
    checkpoint = open_checkpoint(str(tiny_model("llama")))
    executor = NativeExecutor(checkpoint, num_blocks=8, max_num_seqs=1, max_model_len=128, num_threads=1)
    try:
        sequences = sample_sequences(checkpoint.tokenizer, checkpoint.spec.vocab_size, 100)
        assert len(sequences) > 3
        p = list(log_probabilities(executor, sequences[:2]))
        assert [one.shape for one in p] == [(99, checkpoint.spec.vocab_size)] * 2
        np.testing.assert_allclose(np.exp(p[0]).sum(-1), 1, rtol=1e-5)
        found = compare(p, log_probabilities(executor, sequences[:2]))
    finally:
        executor.close()
    assert (found.kl, found.top1_agreement, found.tokens) == (0, 1, 198)


def test_the_text_is_long_enough_and_a_large_vocabulary_takes_less_of_it() -> None:
    assert len(sample_text().split()) > 600
    tokenizer = open_checkpoint("smollm2-135m").tokenizer
    small, large = (sum(map(len, sample_sequences(tokenizer, size, 64))) for size in (1000, 1_000_000))
    assert small == 768
    assert 2 <= large < 100
