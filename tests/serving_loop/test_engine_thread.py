"""The loop on its own thread: admission, delivery, aborts and errors, across threads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from tightpack.requests.outputs import Update
from tightpack.requests.request import Request
from tightpack.scheduling.plan import StepPlan
from tightpack.scheduling.policy import QueueFullError
from tightpack.serving_loop.engine_thread import EngineThread, Subscription
from tightpack.serving_loop.executor import StepResult
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


def hold_first_step(executor: Any) -> tuple[threading.Event, threading.Event]:
    """The first event is set when a step begins; no step ends before the second one is."""
    executing, go_on = threading.Event(), threading.Event()
    execute = executor.execute

    def held(plan: StepPlan) -> StepResult:
        executing.set()
        go_on.wait(5)
        return cast(StepResult, execute(plan))

    executor.execute = held
    return executing, go_on


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


async def test_what_is_submitted_while_closing_is_told_so(
    make_loop: MakeLoop,
    make_request: MakeRequest,
    start: Callable[[ServingLoop], EngineThread],
    executor: Any,
) -> None:
    """The thread is in its last step when the second request comes, and never looks for another."""
    executing, go_on = hold_first_step(executor)
    thread = start(make_loop())
    first = thread.submit([make_request("first")])
    executing.wait(5)
    late = thread.submit([make_request("late")])
    closing = threading.Thread(target=thread.close)
    closing.start()
    while thread.is_running:
        await asyncio.sleep(0.001)
    go_on.set()
    closing.join(5)
    assert (await next_event(first)).token_ids == (5,)
    assert (await next_event(first)).error == "the engine was closed"
    with pytest.raises(RuntimeError, match="closed"):
        await next_event(late)


def test_a_refusal_that_nobody_can_read_leaves_the_thread_alive(
    make_loop: MakeLoop,
    make_request: MakeRequest,
    start: Callable[[ServingLoop], EngineThread],
    executor: Any,
) -> None:
    executing, go_on = hold_first_step(executor)
    thread = start(make_loop(max_queue=1))

    async def leave_three_behind() -> None:
        thread.submit([make_request("runs")])
        executing.wait(5)
        thread.submit([make_request("waits")])
        thread.submit([make_request("refused")])

    asyncio.run(leave_three_behind())  # whose event loop is closed when the answer comes
    go_on.set()

    async def come_later() -> dict[str, list[int]]:
        return await all_tokens(thread.submit([make_request("later")]))

    while not thread.is_idle:
        assert thread.is_running
        time.sleep(0.001)
    assert asyncio.run(come_later()) == {"later": [5, 6, 7]}


async def test_a_defect_that_ends_the_thread_leaves_nobody_waiting(
    make_loop: MakeLoop, make_request: MakeRequest, start: Callable[[ServingLoop], EngineThread]
) -> None:
    loop = make_loop()
    thread = start(loop)

    def broken(request: Request) -> bool:
        raise KeyError("bookkeeping")

    loop.policy.may_publish = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the engine stopped: KeyError"):
        await all_tokens(thread.submit([make_request("a")]))
    while thread.is_running:
        await asyncio.sleep(0.001)
    assert thread.is_idle
    with pytest.raises(RuntimeError, match="closed"):
        thread.submit([make_request("b")])


async def test_nothing_is_kept_of_requests_that_ended(
    make_loop: MakeLoop, make_request: MakeRequest, start: Callable[[ServingLoop], EngineThread]
) -> None:
    loop = make_loop()
    thread = start(loop)
    for i in range(500):
        names = [f"{i}-{k}" for k in range(4)]
        subscription = thread.submit([make_request(name) for name in names])
        if i % 3 == 0:
            thread.abort(names[:2])
            thread.abort(names[:2])
        left = set(names[2:]) if i % 3 == 0 else set(names)
        while left:
            update = await next_event(subscription)
            if update.finish_reason is not None:
                left.discard(update.request_id)
    while not thread.is_idle:
        await asyncio.sleep(0.001)
    policy: Any = loop.policy
    kept = (thread._subscribers, thread._inbox, loop._requests, loop._unpublished, policy._queues._age)
    assert [len(one) for one in (*kept, policy._blocks._tables)] == [0] * 6


def test_a_program_that_forgets_to_close_ends_cleanly() -> None:
    """A thread that computes while the interpreter is taken down can bring the process down with it."""
    program = """
import atexit
import threading
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.registry import make_policy
from tightpack.serving_loop.clock import MonotonicClock
from tightpack.serving_loop.engine_thread import EngineThread
from tightpack.serving_loop.loop import ServingLoop
limits = SchedulerLimits(
    max_num_seqs=1, max_num_batched_tokens=8, max_model_len=8, block_size=4, num_blocks=4
)
# Registered first, so it runs last.
atexit.register(lambda: print([t.name for t in threading.enumerate()]))
engine = EngineThread(ServingLoop(make_policy("continuous", limits), None, MonotonicClock()))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "['MainThread']\n", "")
