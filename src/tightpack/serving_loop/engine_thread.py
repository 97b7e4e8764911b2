"""The serving loop on a thread of its own, fed from and read by asyncio."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tightpack.requests.outputs import Update
from tightpack.requests.request import Request
from tightpack.serving_loop.executor import ExecutorDiedError
from tightpack.serving_loop.loop import LoopStats, ServingLoop

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(eq=False)
class Subscription:
    """Requests admitted together, and the queue where their updates arrive.

    An exception in the queue is the last event: none of them was admitted, or the engine has stopped.
    """

    requests: Sequence[Request]
    home: asyncio.AbstractEventLoop
    events: asyncio.Queue[Update | Exception] = field(default_factory=asyncio.Queue)


class EngineThread:
    """Owns a ServingLoop. Every public method may be called from any thread.

    Commands wait in an inbox that the thread empties between steps, so an abort or an arrival takes effect
    within one step. Each step's updates cross over to asyncio in one call an event loop.
    """

    def __init__(self, loop: ServingLoop) -> None:
        self._loop = loop
        self._inbox: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._subscribers: dict[str, Subscription] = {}
        self._closed = False
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="tightpack-engine", daemon=True)
        # A thread that computes while the interpreter is taken down can abort the process.
        atexit.register(self.close)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and not self._closed

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self._idle.is_set()

    @property
    def stats(self) -> LoopStats:
        return self._loop.stats

    def now(self) -> float:
        return self._loop.clock.now()

    def submit(self, requests: Sequence[Request]) -> Subscription:
        """Admit all of the requests or none. Call it from the event loop that will read the events."""
        subscription = Subscription(requests, asyncio.get_running_loop())
        self._command(lambda: self._admit(subscription))
        return subscription

    def abort(self, request_ids: Iterable[str]) -> None:
        ids = tuple(request_ids)
        self._command(lambda: self._abort(ids))

    def close_intake(self) -> None:
        """Tell the policy that no request is expected, so that partial batches leave."""
        self._command(self._loop.close_intake)

    async def ask(self, question: Callable[[ServingLoop], T]) -> T:
        """What the loop answers between two steps. Raises RuntimeError when the engine is closed."""
        home = asyncio.get_running_loop()
        answer: asyncio.Future[T] = home.create_future()

        def set_answer(value: T) -> None:
            if not answer.done():
                answer.set_result(value)

        def reply() -> None:
            home.call_soon_threadsafe(set_answer, question(self._loop))

        self._command(reply)
        return await answer

    def close(self) -> None:
        """Stop after the step under way; requests that are not finished end with an error."""
        atexit.unregister(self.close)
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _command(self, command: Callable[[], None]) -> None:
        with self._wake:
            if not self.is_running:
                raise RuntimeError("the engine is closed")
            self._idle.clear()
            self._inbox.append(command)
            self._wake.notify()

    def _run(self) -> None:
        try:
            self._serve()
            self._deliver(self._loop.fail_all("the engine was closed"))
        except Exception as error:
            # The executor is gone, or the loop or policy has a defect: no request can be trusted to end, so
            # all readers are told.
            logger.exception("the engine stopped")
            stopped = RuntimeError(f"the engine stopped: {type(error).__name__}: {error}")
            for subscription in set(self._subscribers.values()):
                self._tell(subscription, stopped)
        with self._wake:
            self._closed = True
            late, self._inbox = self._inbox, []
        for command in late:  # submissions among them are refused; to anything else there is nothing left
            with contextlib.suppress(Exception):
                command()
        self._idle.set()

    def _serve(self) -> None:
        stepped = False
        while not self._closed:
            for command in self._next_commands(stepped):
                command()
            steps = self._loop.stats.steps
            self._deliver(self._step())
            stepped = self._loop.stats.steps > steps

    def _next_commands(self, stepped: bool) -> list[Callable[[], None]]:
        """Empty the inbox; after a step that ran nothing, sleep until a command or the policy's wake-up."""
        with self._wake:
            if not self._inbox and not stepped and not self._closed:
                if not self._loop.has_unfinished:
                    self._idle.set()
                wakeup = self._loop.next_wakeup()
                self._wake.wait(None if wakeup is None else max(0.0, wakeup - self.now()))
            commands, self._inbox = self._inbox, []
            return commands

    def _step(self) -> list[Update]:
        try:
            return self._loop.step()
        except ExecutorDiedError:
            raise
        except Exception as error:
            # The culprit is unknown, so whatever was under way ends; the engine itself goes on.
            logger.exception("a step failed; its requests end with an error")
            return self._loop.fail_all(f"{type(error).__name__}: {error}")

    def _admit(self, subscription: Subscription) -> None:
        admitted: list[str] = []
        try:
            if self._closed:
                raise RuntimeError("the engine is closed")
            for request in subscription.requests:
                self._loop.add(request)
                admitted.append(request.request_id)
        except Exception as error:
            self._abort(admitted)
            self._tell(subscription, error)
            return
        for request_id in admitted:
            self._subscribers[request_id] = subscription

    def _abort(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self._subscribers.pop(request_id, None)
            self._loop.abort(request_id)

    @staticmethod
    def _tell(subscription: Subscription, error: Exception) -> None:
        with contextlib.suppress(RuntimeError):  # that event loop is closed: nobody is left to read
            subscription.home.call_soon_threadsafe(subscription.events.put_nowait, error)

    def _deliver(self, updates: Iterable[Update]) -> None:
        by_home: dict[asyncio.AbstractEventLoop, list[tuple[Subscription, Update]]] = defaultdict(list)
        for update in updates:
            subscription = self._subscribers.get(update.request_id)
            if subscription is None:
                continue
            by_home[subscription.home].append((subscription, update))
            if update.finish_reason is not None:
                del self._subscribers[update.request_id]
        for home, pairs in by_home.items():
            try:
                home.call_soon_threadsafe(_put_all, pairs)
            except RuntimeError:  # that event loop is closed: nobody is left to read
                self._abort(update.request_id for _, update in pairs)


def _put_all(pairs: Iterable[tuple[Subscription, Update]]) -> None:
    for subscription, update in pairs:
        subscription.events.put_nowait(update)
