"""The loop on its own thread: admission, delivery, aborts and errors, across threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tightpack.requests.outputs import Update
from tightpack.requests.request import Request
from tightpack.scheduling.policy import QueueFullError
from tightpack.serving_loop.engine_thread import EngineThread, Subscription
from tightpack.serving_loop.loop import ServingLoop

MakeLoop = Callable[..., ServingLoop]
MakeRequest = Callable[..., Request]


@pytest.fixture
def start() -> Iterator[Callable[[ServingLoop], EngineThread]]:
    threads: list[EngineThread] = []

    def start_one(loop: ServingLoop) -> EngineThread:
        threads.append(EngineThread(loop))
        return threads[-1]

    yield start_one
    for thread in threads:
        thread.close()


async def next_event(subscription: Subscription) -> Update:
    event = await asyncio.wait_for(subscription.events.get(), timeout=5)
    if isinstance(event, Exception):
        raise event
    return event


async def all_tokens(subscription: Subscription) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {r.request_id: [] for r in subscription.requests}
    unfinished = set(tokens)
    while unfinished:
        update = await next_event(subscription)
        tokens[update.request_id].extend(update.token_ids)
        if update.finish_reason is not None:
            unfinished.remove(update.request_id)
    return tokens


async def test_requests_from_one_event_loop_get_their_own_tokens(
    make_loop: MakeLoop, make_request: MakeRequest, start: Callable[[ServingLoop], EngineThread]
) -> None:
    thread = start(make_loop())
    first = thread.submit([make_request("a", prompt=range(5))])
    second = thread.submit([make_request("b", prompt=range(20)), make_request("c", prompt=range(30, 40))])
    assert await all_tokens(first) == {"a": [5, 6, 7]}
    assert await all_tokens(second) == {"b": [20, 21, 22], "c": [40, 41, 42]}
    while not thread.is_idle:
        await asyncio.sleep(0.001)


async def test_a_group_is_admitted_whole_or_not_at_all(
    make_loop: MakeLoop, make_request: MakeRequest, start: Callable[[ServingLoop], EngineThread]
) -> None:
    loop = make_loop(max_queue=2)
    thread = start(loop)
    with pytest.raises(QueueFullError):
        await next_event(thread.submit([make_request(name) for name in "abc"]))
    assert await all_tokens(thread.submit([make_request("a")])) == {"a": [5, 6, 7]}
    assert loop.policy.kv_usage == 0


async def test_an_abort_frees_the_blocks_and_the_others_go_on(
    make_loop: MakeLoop, make_request: MakeRequest, start: Callable[[ServingLoop], EngineThread]
) -> None:
    loop = make_loop()
    thread = start(loop)
    gone = thread.submit([make_request("gone", max_tokens=59)])
    stays = thread.submit([make_request("stays", max_tokens=10)])
    await next_event(gone)
    thread.abort(["gone"])
    assert len((await all_tokens(stays))["stays"]) == 10
    while not thread.is_idle:
        await asyncio.sleep(0.001)
    assert loop.policy.kv_usage == 0


async def test_a_step_that_raises_ends_its_requests_and_not_the_thread(
    make_loop: MakeLoop,
    make_request: MakeRequest,
    start: Callable[[ServingLoop], EngineThread],
    executor: Any,
) -> None:
    thread = start(make_loop())
    executor.raises = RuntimeError("boom")
    update = await next_event(thread.submit([make_request("a")]))
    assert (update.finish_reason, update.error) == ("error", "RuntimeError: boom")
    executor.raises = None
    assert await all_tokens(thread.submit([make_request("b")])) == {"b": [5, 6, 7]}


async def test_closing_ends_what_is_under_way_with_an_error(
    make_loop: MakeLoop, make_request: MakeRequest, start: Callable[[ServingLoop], EngineThread]
) -> None:
    thread = start(make_loop("static"))  # which waits for more, so that the request is still there
    subscription = thread.submit([make_request("a")])
    await asyncio.sleep(0.05)
    thread.close()
    update = await next_event(subscription)
    assert (update.finish_reason, update.error) == ("error", "the engine was closed")
    with pytest.raises(RuntimeError, match="closed"):
        thread.submit([make_request("b")])
