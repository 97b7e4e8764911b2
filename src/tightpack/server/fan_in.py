"""One stream of deltas out of those of several prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def fan_in(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items of all streams as they come, each with the index of its stream.

    Several streams give nothing before each has given its first item: an error of one that is refused comes
    out before anything was shown of the others. An error of any closes all, and so does closing this one.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    held: list[tuple[int, T]] | None = []
    silent = set(range(len(streams)))
    unfinished = len(streams)
    try:
        while unfinished:
            event = await queue.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                unfinished -= 1
                continue
            if held is None:
                yield event
                continue
            held.append(event)
            silent.discard(event[0])
            if not silent:
                for early in held:
                    yield early
                held = None
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    index: int, stream: AsyncGenerator[T, None], queue: asyncio.Queue[tuple[int, T] | BaseException | None]
) -> None:
    try:
        async with aclosing(stream) as items:
            async for item in items:
                queue.put_nowait((index, item))
    except Exception as error:
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)
