"""What a request does to its logits before a token is chosen: bias, min_tokens, penalties; vLLM's order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightpack.requests.request import Request
from tightpack.torch_backend.transfer import send

IntArray = NDArray[np.int64]


def edits_logits(request: Request) -> bool:
    params = request.params
    return bool(params.logit_bias or request.num_output_tokens < params.min_tokens or needs_tokens(request))


def needs_tokens(request: Request) -> bool:
    """Whether choosing a token needs to know, on the host, all those before it."""
    params = request.params
    return bool(params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty)


def edit_logits_(logits: Tensor, requests: Sequence[Request]) -> None:
    """Edit float32 [rows, vocab_size] in place, a row a request. Every token id of a request must be below
    vocab_size.

    In order: logit_bias is added; the tokens that would end a request short of min_tokens go to minus
    infinity; repetition_penalty divides positive logits of prompt and output tokens and multiplies negative
    ones (Keskar et al. 2019); frequency_penalty times its count and presence_penalty are subtracted from each
    output token's logit (OpenAI).
    """
    _add_bias(logits, requests)
    _hold_back_endings(logits, requests)
    _penalize_repetition(logits, requests)
    _penalize_output(logits, requests)


def _add_bias(logits: Tensor, requests: Sequence[Request]) -> None:
    edit = _Edit(logits)
    for row, request in enumerate(requests):
        bias = request.params.logit_bias
        if bias:
            edit.add(row, np.fromiter(bias.keys(), np.int64), np.fromiter(bias.values(), np.float32))
    if edit:
        rows, ids, values = edit.tensors()
        logits[rows, ids] += values


def _hold_back_endings(logits: Tensor, requests: Sequence[Request]) -> None:
    edit = _Edit(logits)
    for row, request in enumerate(requests):
        if request.num_output_tokens >= request.params.min_tokens:
            continue
        endings = request.eos_token_ids.union(request.params.stop_token_ids or ())
        ids = np.asarray(sorted(t for t in endings if 0 <= t < logits.shape[-1]), dtype=np.int64)
        if len(ids):
            edit.add(row, ids, np.full(len(ids), -np.inf, np.float32))
    if edit:
        rows, ids_tensor, values = edit.tensors()
        logits[rows, ids_tensor] = values


def _penalize_repetition(logits: Tensor, requests: Sequence[Request]) -> None:
    edit = _Edit(logits)
    for row, request in enumerate(requests):
        penalty = request.params.repetition_penalty
        if penalty != 1:
            seen = np.unique(np.asarray(request.token_ids, dtype=np.int64))
            edit.add(row, seen, np.full(len(seen), penalty, np.float32))
    if edit:
        rows, ids, penalties = edit.tensors()
        before = logits[rows, ids]
        logits[rows, ids] = torch.where(before > 0, before / penalties, before * penalties)


def _penalize_output(logits: Tensor, requests: Sequence[Request]) -> None:
    edit = _Edit(logits)
    for row, request in enumerate(requests):
        presence, frequency = request.params.presence_penalty, request.params.frequency_penalty
        if (presence or frequency) and request.num_output_tokens:
            seen, counts = np.unique(np.asarray(request.output_token_ids, dtype=np.int64), return_counts=True)
            edit.add(row, seen, (counts * frequency + presence).astype(np.float32))
    if edit:
        rows, ids, values = edit.tensors()
        logits[rows, ids] -= values


class _Edit:
    """(row, token id, value) triples, no pair twice, gathered over the requests for one indexed operation."""

    def __init__(self, logits: Tensor) -> None:
        self._device = logits.device
        self._rows: list[IntArray] = []
        self._ids: list[IntArray] = []
        self._values: list[NDArray[np.float32]] = []

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, row: int, ids: IntArray, values: NDArray[np.float32]) -> None:
        self._rows.append(np.full(len(ids), row, dtype=np.int64))
        self._ids.append(ids)
        self._values.append(values)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        parts = (np.concatenate(self._rows), np.concatenate(self._ids), np.concatenate(self._values))
        rows, ids, values = (send(torch.from_numpy(part), self._device) for part in parts)
        return rows, ids, values
