"""What a result file says of where its numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tightpack.benchmarking.machine import describe_machine

_MEASURED_WITH = ("tightpack", "torch", "numpy", "httpx")


@dataclass(frozen=True, slots=True)
class Conditions:
    """The state that runs began in.

    warm_up_requests: short requests answered before the first run; 0 for none.
    prefix_caching: whether equal beginnings of prompts were shared; None where the server does not tell.
    kv_cache_at_start: of every run, "empty", or "unknown" for a server, which keeps what it likes.
    """

    warm_up_requests: int
    prefix_caching: bool | None
    kv_cache_at_start: str


def manifest(
    *, model: str, label: str, executor: Mapping[str, str], arguments: Mapping[str, Any], where: str = "local"
) -> dict[str, Any]:
    """label: the name of this result beside others. where: "local", or the address of a server, in which case
    the machine and versions are those of the client."""
    return {
        "model": model,
        "label": label,
        "where": where,
        "machine": describe_machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": _versions(),
        "executor": dict(executor),
        "arguments": dict(arguments),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _MEASURED_WITH:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
