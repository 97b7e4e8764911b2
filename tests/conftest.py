"""Fixtures that several folders share: the bundled model, loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tightpack import LLM


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    """SmolLM2 in fp32, where greedy tokens do not hang on the order of a sum."""
    engine = LLM(model="smollm2-135m", dtype="float32", max_model_len=512, max_num_seqs=8, num_blocks=256)
    yield engine
    engine.engine.executor.close()
