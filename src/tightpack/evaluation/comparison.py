"""What a model's next-token distributions lost against a reference's, over a text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# Rows of logits whose logarithms are held at a time: a few copies of [rows, vocabulary] in float32.
_ROWS_AT_A_TIME = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Means over the positions whose next token is in the text.

    perplexity: exp of the mean negative log-likelihood in nats, of the model that is judged.
    reference_perplexity, kl, top1_agreement: None without a reference. kl: KL(reference || model) in nats.
    top1_agreement: share of positions where both give the same token the most probability.
    tokens: positions counted.
    seconds: wall time of both models.
    """

    perplexity: float
    reference_perplexity: float | None
    kl: float | None
    top1_agreement: float | None
    tokens: int
    sequences: int
    sequence_length: int
    seconds: float

    @property
    def is_finite(self) -> bool:
        return all(math.isfinite(v) for v in (self.perplexity, self.kl or 0.0))


def measure(
    sequences: NDArray[np.int64], logits: Iterable[Tensor], reference: Iterable[Tensor] | None = None
) -> Quality:
    """Compare sequence by sequence, so that one sequence's logits of each model are held at a time.

    sequences: token ids [count, length]. logits, reference: for each of them, in order, float32
    [length, vocabulary], the logits after each token; the last one's are left out, as its next token is
    unknown. Raises ValueError where there are fewer than sequences.
    """
    started = time.perf_counter()
    judged = iter(logits)
    compared = None if reference is None else iter(reference)
    totals = torch.zeros(4, dtype=torch.float64)
    with torch.inference_mode():
        for tokens in sequences:
            own = _next(judged)[:-1]
            other = None if compared is None else _next(compared)[:-1]
            targets = torch.from_numpy(tokens[1:]).to(own.device)
            totals += _sums(own, other, targets)
    count = sequences.shape[0] * (sequences.shape[1] - 1)
    nll, reference_nll, kl, agreement = (totals / count).tolist()
    compares = reference is not None
    return Quality(
        perplexity=_exp(nll),
        reference_perplexity=_exp(reference_nll) if compares else None,
        kl=kl if compares else None,
        top1_agreement=agreement if compares else None,
        tokens=count,
        sequences=sequences.shape[0],
        sequence_length=sequences.shape[1],
        seconds=time.perf_counter() - started,
    )


def _sums(own: Tensor, other: Tensor | None, targets: Tensor) -> Tensor:
    """Sums over rows: negative log-likelihood, the reference's, KL, equal first choices."""
    sums = torch.zeros(4, dtype=torch.float64)
    for first in range(0, len(targets), _ROWS_AT_A_TIME):
        rows = slice(first, first + _ROWS_AT_A_TIME)
        q = functional.log_softmax(own[rows].float(), -1)
        wanted = targets[rows].unsqueeze(-1)
        sums[0] -= q.gather(-1, wanted).double().sum().cpu()
        if other is None:
            continue
        p = functional.log_softmax(other[rows].float(), -1).to(q.device)
        sums[1] -= p.gather(-1, wanted).double().sum().cpu()
        # xlogy-like: a token of probability zero adds nothing, whatever the difference of logarithms.
        terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
        sums[2] += terms.sum(-1).double().sum().cpu()
        sums[3] += (p.argmax(-1) == q.argmax(-1)).double().sum().cpu()
    return sums


def _next(logits: Iterable[Tensor]) -> Tensor:
    for item in logits:
        return item
    raise ValueError("there are fewer logits than sequences")


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
