"""What serving at a precision costs in quality, in a second or two and without PyTorch.

The same KL divergence and agreement as `evaluation/comparison.py`, in numpy, over logits of the executor that
serves: rounded weights and rounded activations together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tightpack.checkpoints.tokenizer import Tokenizer
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.plan import Chunk

# What the reference's distributions may take while others are compared with them.
_REFERENCE_BYTES = 256 * 2**20
_MOST_POSITIONS = 768

Logarithms = NDArray[np.float32]


class GivesLogits(Protocol):
    """An executor that can say more than its next token."""

    @property
    def block_size(self) -> int: ...

    def logits(self, chunks: Sequence[Chunk]) -> Any:
        """Float32 [tokens, vocabulary], an array or a tensor."""


@dataclass(frozen=True, slots=True)
class QuickQuality:
    """kl: mean of KL(reference || model) in nats. top1_agreement: share of positions with the same most
    probable token. tokens: positions compared."""

    kl: float
    top1_agreement: float
    tokens: int


def sample_text() -> str:
    """The text that comes with the package: a page of plain English."""
    return files("tightpack.evaluation").joinpath("sample.txt").read_text(encoding="utf-8")


def sample_sequences(tokenizer: Tokenizer, vocab_size: int, length: int) -> list[tuple[int, ...]]:
    """The sample text in sequences of `length` tokens, the last one shorter; no more than a reference's
    distributions have room for."""
    most = min(_MOST_POSITIONS, _REFERENCE_BYTES // (4 * vocab_size))
    tokens = tokenizer.encode(sample_text())[: max(most, 2)]
    cut = [tuple(tokens[first : first + length]) for first in range(0, len(tokens), length)]
    return [sequence for sequence in cut if len(sequence) > 1]


def log_probabilities(executor: GivesLogits, sequences: Sequence[Sequence[int]]) -> Iterator[Logarithms]:
    """Of each sequence [length, vocabulary], after every token but the last, from an empty context.

    Overwrites the first blocks of the executor's KV cache: nothing else may be under way.
    """
    for tokens in sequences:
        blocks = tuple(range(-(-len(tokens) // executor.block_size)))
        request = Request(
            request_id="quality",
            prompt_token_ids=tuple(tokens),
            params=SamplingParams(max_tokens=1),
            seed=0,
            max_output_tokens=1,
        )
        logits = np.asarray(_on_cpu(executor.logits([Chunk(request, 0, len(tokens), blocks)])))[:-1]
        yield _log_softmax(logits)


def compare(reference: Sequence[Logarithms], model: Iterator[Logarithms]) -> QuickQuality:
    """Both over the same sequences, in the same order."""
    kl, agreement, count = 0.0, 0, 0
    for p, q in zip(reference, model, strict=True):
        kl += float(np.einsum("ij,ij->", np.exp(p), p - q, dtype=np.float64))
        agreement += int((p.argmax(-1) == q.argmax(-1)).sum())
        count += len(p)
    return QuickQuality(kl / count, agreement / count, count)


def _log_softmax(logits: NDArray[np.float32]) -> Logarithms:
    shifted: Logarithms = logits - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def _on_cpu(logits: Any) -> Any:
    """A tensor's numbers, wherever it lies."""
    return logits.float().cpu() if hasattr(logits, "cpu") else logits
