"""What the router reads from a body."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tightpack.cluster.asked import read_asked
from tightpack.cluster.prefixes import BLOCK_BYTES


def read(**body: Any) -> Any:
    return read_asked(json.dumps(body).encode())


def test_token_ids_are_counted_exactly() -> None:
    assert read(prompt=list(range(100))).prompt_tokens == 100
    several = read(prompt=[[1, 2, 3], [4]], n=2)
    assert (several.prompt_tokens, several.sequences) == (4, 4)


def test_text_is_estimated_from_its_bytes() -> None:
    assert read(prompt="x" * 400).prompt_tokens == 100
    assert read(prompt=["x" * 40, "y" * 80]).prompt_tokens == 30
    assert 95 <= read(messages=[{"role": "user", "content": "x" * 400}]).prompt_tokens <= 120


def test_class_model_and_limits() -> None:
    asked = read(
        model="m", prompt="x", service_tier="flex", stream=True, max_completion_tokens=7, max_tokens=7
    )
    assert (asked.model, asked.service_class, asked.stream, asked.max_tokens) == ("m", "batch", True, 7)
    assert read(prompt="x", service_tier="priority").service_class == "interactive"
    assert read(prompt="x").service_class == "standard"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"prompt": 3, "n": "x", "model": 1, "service_tier": {}}', b"[" * 100_000]
)
def test_nonsense_is_left_to_the_replica(body: bytes) -> None:
    asked = read_asked(body)
    assert (asked.prompt_tokens, asked.sequences, asked.model) == (1, 1, None)


def test_equal_beginnings_have_equal_hashes() -> None:
    system = {"role": "system", "content": "s" * 3 * BLOCK_BYTES}
    one = read(messages=[system, {"role": "user", "content": "a" * BLOCK_BYTES}])
    two = read(messages=[system, {"role": "user", "content": "b" * BLOCK_BYTES}])
    assert one.prefix[:3] == two.prefix[:3]
    assert one.prefix[-1] != two.prefix[-1]
    assert read(prompt=[7] * 64).prefix != read(prompt=[8] * 64).prefix
