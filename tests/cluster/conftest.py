"""Replicas without a model, whole clusters of a tiny one, and what a replica would publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest

from tightpack.serving_loop.load import ClassLoad, EngineLoad


@pytest.fixture(scope="session")
def make_load() -> Callable[..., EngineLoad]:
    """Of an idle replica: 10 ms a step, 0.2 ms a prompt token, 0.1 ms a decode."""

    def make(**changes: Any) -> EngineLoad:
        fields: dict[str, Any] = {
            "policy": "chunked-prefill",
            "num_running": 0,
            "num_waiting": 0,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 256,
            "by_class": {},
            "decodes": 0,
            "decode_context": 0,
            "free_kv_tokens": 10_000,
            "step_seconds": (0.01, 0.0002, 0.0, 0.0001, 0.0),
            "relative_error": 0.05,
            "num_observed": 100,
            "ends_in_steps": (),
            "output_tokens": 40.0,
            "longest_output_tokens": 40.0,
            "max_wait_s": 0.05,
            "prompt_room_s": None,
        }
        if "waiting" in changes:  # so many prompt tokens of the standard class, one request
            changes["by_class"] = {"standard": ClassLoad(1, changes.pop("waiting"), 0)}
            changes.setdefault("num_waiting", 1)
        fields |= changes
        waiting = list(fields["by_class"].values())
        fields.setdefault(
            "ahead", ClassLoad(*(sum(values) for values in zip(*map(astuple, waiting), strict=True)))
        )
        return EngineLoad(**fields)

    return make
