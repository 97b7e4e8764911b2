"""What all endpoints of one server share."""

from __future__ import annotations

import functools
import importlib.metadata
import time
from dataclasses import dataclass, field

from tightpack.server.api_error import ApiError
from tightpack.server.engine import ServingEngine
from tightpack.server.metrics import ServerMetrics


@functools.cache
def package_version() -> str:
    try:
        return importlib.metadata.version("tightpack")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@dataclass(slots=True)
class Lifecycle:
    """Whether new requests are taken, and how many are being answered."""

    draining: bool = False
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """model_name: the one name clients use. max_body_bytes: of a request."""

    engine: ServingEngine
    model_name: str
    metrics: ServerMetrics
    lifecycle: Lifecycle
    max_body_bytes: int
    started: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str | None) -> None:
        """404 for another model's name; None is for endpoints where the name may be left out."""
        if name not in (None, self.model_name):
            raise ApiError(
                404,
                f"the model {name!r} does not exist; this server has {self.model_name!r}",
                param="model",
                code="model_not_found",
            )
