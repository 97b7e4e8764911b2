"""Simulations of a plan, computed when they are asked for, or ahead of that in processes of their own."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol


class Jobs(Protocol):
    """Calls under keys. Whatever is begun and when, `result` is the same."""

    @property
    def idle(self) -> int:
        """Calls that could be begun at once, beside those that are under way."""

    def begin(self, key: Hashable, call: Callable[..., Any], *arguments: Any) -> None:
        """The result may be asked for later. A key that has come before is left as it is."""

    def result(self, key: Hashable) -> Any:
        """Of a call that was begun; waits for it."""


class InTurn:
    """Everything in this process, once it is asked for. common: a last argument of every call."""

    idle = 0

    def __init__(self, common: Any) -> None:
        self._common = common
        self._calls: dict[Hashable, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._results: dict[Hashable, Any] = {}

    def begin(self, key: Hashable, call: Callable[..., Any], *arguments: Any) -> None:
        self._calls.setdefault(key, (call, arguments))

    def result(self, key: Hashable) -> Any:
        if key not in self._results:
            call, arguments = self._calls[key]
            self._results[key] = call(*arguments, self._common)
        return self._results[key]


class Processes:
    """`count` processes, which end with the `with` block, whatever they are at.

    common: a last argument of every call, sent once. The calls are functions of modules, and what they take
    and return is pickled.
    """

    def __init__(self, count: int, common: Any) -> None:
        # Not forked: progress bars have threads.
        context = multiprocessing.get_context("spawn")
        self._workers = []
        self._idle: list[Connection] = []
        self._waiting: deque[tuple[Hashable, Callable[..., Any], tuple[Any, ...]]] = deque()
        self._begun: set[Hashable] = set()
        self._at: dict[Connection, Hashable] = {}
        self._results: dict[Hashable, Any] = {}
        for _ in range(count):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(theirs, common), daemon=True)
            worker.start()
            theirs.close()
            self._workers.append(worker)
            self._idle.append(ours)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join()

    @property
    def idle(self) -> int:
        self._collect(0)
        return len(self._idle) - len(self._waiting)

    def begin(self, key: Hashable, call: Callable[..., Any], *arguments: Any) -> None:
        if key not in self._begun:
            self._begun.add(key)
            self._waiting.append((key, call, arguments))
            self._hand_out()

    def result(self, key: Hashable) -> Any:
        """Raises RuntimeError where a process ended before it had one."""
        while key not in self._results:
            self._collect(None)
        return self._results[key]

    def _collect(self, timeout: float | None) -> None:
        for connection in wait(list(self._at), timeout):
            assert isinstance(connection, Connection)
            key = self._at.pop(connection)
            try:
                self._results[key] = connection.recv()
            except EOFError:
                raise RuntimeError("a process of the simulation was ended from outside") from None
            self._idle.append(connection)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._idle and self._waiting:
            key, call, arguments = self._waiting.popleft()
            connection = self._idle.pop()
            connection.send((call, arguments))
            self._at[connection] = key


@contextmanager
def open_jobs(count: int, common: Any) -> Iterator[Jobs]:
    """`count` processes, or none for 1."""
    if count < 2:
        yield InTurn(common)
        return
    with Processes(count, common) as processes:
        yield processes


def _work(connection: Connection, common: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    while True:
        try:
            call, arguments = connection.recv()
        except EOFError:
            return
        connection.send(call(*arguments, common))
