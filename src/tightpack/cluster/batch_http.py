"""Answers lines of a batch through HTTP: over the network, or to an application in this process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx

from tightpack.cluster.batch_file import BatchLine, answered, failed

# Statuses that say "later": the queue is full, or the server is about to be replaced.
_LATER = (429, 502, 503)
_LONGEST_WAIT_S = 10.0


async def answer_line(client: httpx.AsyncClient, line: BatchLine, *, patience: float) -> dict[str, Any]:
    """The output line. A refusal for now and a lost connection are tried again, for `patience` seconds."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    wait = 0.1
    # A batch has no deadline, and must not take the place of those who have.
    body = {"service_tier": "flex", **(line.body or {})}
    while True:
        try:
            answer = await client.post(line.url, json=body)
            if answer.status_code not in _LATER or loop.time() >= until:
                request_id = answer.headers.get("x-request-id", "")
                try:
                    content = answer.json()
                except ValueError:
                    content = answer.text
                return answered(line, answer.status_code, request_id, content)
        except httpx.TransportError as error:
            if loop.time() >= until:
                message = f"no answer: {type(error).__name__}: {error}"
                return failed(line, {"code": "request_failed", "message": message})
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, _LONGEST_WAIT_S)


async def answer_lines(
    client: httpx.AsyncClient, lines: Iterable[BatchLine], *, concurrency: int, patience: float = 600.0
) -> AsyncIterator[tuple[BatchLine, dict[str, Any]]]:
    """Each line with its output, as they come, so many under way at once."""
    waiting = iter(lines)
    under_way: dict[asyncio.Task[dict[str, Any]], BatchLine] = {}
    try:
        while True:
            while len(under_way) < concurrency and (line := next(waiting, None)) is not None:
                task = asyncio.create_task(answer_line(client, line, patience=patience))
                under_way[task] = line
            if not under_way:
                return
            done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield under_way.pop(task), task.result()
    finally:
        for task in under_way:
            task.cancel()
