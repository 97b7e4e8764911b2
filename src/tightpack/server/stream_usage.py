"""Token counts in streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tightpack.server.request_models import StreamOptions


class StreamUsage:
    """What `stream_options` says of usage.

    With include_usage every chunk has the field, null but in the last one, as OpenAI documents; with
    continuous_usage_stats it holds the counts so far.
    """

    def __init__(self, options: StreamOptions | None) -> None:
        self.wanted = bool(options and options.include_usage)
        self._continuous = bool(options and options.continuous_usage_stats)

    def beside(self, count: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The usage field, if any, of a chunk that has choices."""
        if not self.wanted:
            return {}
        return {"usage": count() if self._continuous else None}
