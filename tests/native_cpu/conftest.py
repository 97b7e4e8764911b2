"""Checkpoints for the native executor, requests, and a scheduler without decisions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.requests.request import Request
from tightpack.requests.sampling_params import SamplingParams
from tightpack.scheduling.plan import Chunk


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: Callable[[str], Path]) -> Callable[[str], Checkpoint]:
    """A family's name to a random checkpoint of three layers; "capped" has softcaps as well."""

    def get(family: str = "llama") -> Checkpoint:
        if family == "capped":
            checkpoint = open_checkpoint(str(tiny_model("gemma3")))
            spec = replace(checkpoint.spec, attention_softcap=0.7, logit_softcap=1.5)
            return replace(checkpoint, spec=spec)
        return open_checkpoint(str(tiny_model(family)))

    return get


def build_request(tokens: Sequence[int], name: str = "request", **params: Any) -> Request:
    sampling = {"temperature": 0.0, "max_tokens": 64} | params
    return Request(
        request_id=name,
        prompt_token_ids=tuple(tokens),
        params=SamplingParams(**sampling),
        seed=sampling.get("seed") or 0,
        max_output_tokens=64,
    )


@pytest.fixture(scope="session")
def make_request() -> Callable[..., Request]:
    return build_request


class Sequencer:
    """Hands out shuffled blocks and makes the chunks of requests."""

    def __init__(self, num_blocks: int, block_size: int, seed: int = 0) -> None:
        self.block_size = block_size
        self.free = list(range(num_blocks))
        random.Random(seed).shuffle(self.free)
        self.tables: dict[Request, list[int]] = {}

    def chunk(self, request: Request, count: int | None = None) -> Chunk:
        """The request's next `count` tokens (all that are known); advances it as a commit would."""
        first = request.num_computed_tokens
        count = len(request.token_ids) - first if count is None else count
        table = self.tables.setdefault(request, [])
        while len(table) * self.block_size < first + count:
            table.append(self.free.pop())
        request.num_computed_tokens = first + count
        return Chunk(request, first, count, tuple(table))

    def release(self, request: Request) -> None:
        """The blocks come back first: the next request gets them with what is in them."""
        self.free += self.tables.pop(request)


@pytest.fixture(scope="session")
def sequencer() -> type[Sequencer]:
    return Sequencer
