"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from tightpack.server.fan_in import fan_in


class Source:
    """Yields `items` with pauses; remembers whether it was closed."""

    def __init__(self, items: list[int], pause: float = 0.0, error: Exception | None = None) -> None:
        self._items, self._pause, self._error = items, pause, error
        self.open = False

    async def stream(self) -> AsyncGenerator[int, None]:
        self.open = True
        try:
            for item in self._items:
                await asyncio.sleep(self._pause)
                yield item
            if self._error:
                raise self._error
        finally:
            self.open = False


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_every_item_once_and_in_order(count: int) -> None:
    sources = [Source(list(range(n, n + 4)), pause=0.001 * (n % 3)) for n in range(count)]
    got: list[list[int]] = [[] for _ in sources]
    async for index, item in fan_in([source.stream() for source in sources]):
        got[index].append(item)
    assert got == [list(range(n, n + 4)) for n in range(count)]
    assert not any(source.open for source in sources)


@pytest.mark.parametrize("count", [1, 3])
async def test_closing_closes_all(count: int) -> None:
    sources = [Source([1, 2, 3]) for _ in range(count)]
    merged = fan_in([source.stream() for source in sources])
    await anext(merged)
    await merged.aclose()
    assert not any(source.open for source in sources)


async def test_a_late_refusal_comes_before_any_item() -> None:
    quick, late = Source([1, 2, 3]), Source([], pause=0.01, error=ValueError("no"))
    merged = fan_in([quick.stream(), late.stream()])
    with pytest.raises(ValueError, match="no"):
        await anext(merged)
    assert not quick.open


async def test_an_error_closes_the_others() -> None:
    failing, endless = Source([1], error=ValueError("no")), Source(list(range(1000)), pause=0.001)
    with pytest.raises(ValueError, match="no"):
        async for _ in fan_in([endless.stream(), failing.stream()]):
            pass
    assert not endless.open
