from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tightpack.evaluation.comparison import measure


def test_against_plain_float64() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 50, (3, 200))
    own, other = rng.standard_normal((2, 3, 200, 50)) * 3

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    q, p = log_softmax(own)[:, :-1], log_softmax(other)[:, :-1]
    targets = tokens[:, 1:, None]
    found = measure(tokens, torch.from_numpy(own).float(), torch.from_numpy(other).float())
    assert found.perplexity == pytest.approx(math.exp(-np.take_along_axis(q, targets, -1).mean()), rel=1e-5)
    assert found.reference_perplexity == pytest.approx(
        math.exp(-np.take_along_axis(p, targets, -1).mean()), rel=1e-5
    )
    assert found.kl == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-5)
    assert found.top1_agreement == pytest.approx((q.argmax(-1) == p.argmax(-1)).mean())
    assert (found.tokens, found.sequences, found.sequence_length) == (3 * 199, 3, 200)
    assert found.is_finite


def test_a_model_against_itself() -> None:
    tokens = np.zeros((2, 5), dtype=np.int64)
    logits = torch.randn(2, 5, 7)
    found = measure(tokens, logits, logits)
    assert (found.kl, found.top1_agreement) == (0, 1)


def test_without_a_reference() -> None:
    found = measure(np.zeros((1, 4), dtype=np.int64), torch.zeros(1, 4, 8))
    assert found.perplexity == pytest.approx(8)
    assert (found.kl, found.top1_agreement, found.reference_perplexity) == (None, None, None)


def test_nan_is_not_hidden() -> None:
    tokens = np.zeros((1, 4), dtype=np.int64)
    logits = torch.zeros(1, 4, 8)
    broken = logits.clone()
    broken[0, 1, 3] = torch.nan
    assert not measure(tokens, broken, logits).is_finite


def test_fewer_logits_than_sequences() -> None:
    with pytest.raises(ValueError, match="fewer logits than sequences"):
        measure(np.zeros((2, 4), dtype=np.int64), torch.zeros(1, 4, 8))
