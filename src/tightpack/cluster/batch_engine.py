"""An engine that answers lines of a batch in this process, through the server's own application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import httpx

from tightpack.async_llm import AsyncLLM
from tightpack.cluster.batch_file import BatchLine
from tightpack.cluster.batch_http import answer_line, answer_lines
from tightpack.server.app import create_app

_PATIENCE_S = 600.0


class BatchEngine:
    """engine: keywords of EngineArgs."""

    def __init__(self, engine: Mapping[str, Any]) -> None:
        self._engine = AsyncLLM(**engine)
        app = create_app(self._engine, model_name=self._engine.model_name)
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url="http://engine",
            timeout=None,
        )

    async def answer_all(self, lines: Sequence[BatchLine]) -> list[dict[str, Any]]:
        """All at once; their outputs in the same order."""
        return await asyncio.gather(
            *(answer_line(self._client, line, patience=_PATIENCE_S) for line in lines)
        )

    def answer(self, lines: Iterable[BatchLine]) -> AsyncIterator[tuple[BatchLine, dict[str, Any]]]:
        """As they come, with twice as many under way as there are places: the next wait in the queue."""
        return answer_lines(self._client, lines, concurrency=2 * self._engine.args.max_num_seqs)

    def close(self) -> None:
        self._engine.close()
