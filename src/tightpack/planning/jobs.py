"""Simulations of a plan, computed when they are asked for, or ahead of that in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Protocol

_MODULE = "tightpack.planning.simulation_process"


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
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: list[Connection] = []
        self._waiting: deque[tuple[Hashable, Callable[..., Any], tuple[Any, ...]]] = deque()
        self._begun: set[Hashable] = set()
        self._at: dict[Connection, Hashable] = {}
        self._results: dict[Hashable, Any] = {}
        for _ in range(count):
            ours, theirs = Pipe()
            command = [sys.executable, "-m", _MODULE, str(theirs.fileno())]
            self._processes.append(subprocess.Popen(command, pass_fds=[theirs.fileno()]))
            theirs.close()
            ours.send(common)
            self._idle.append(ours)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
        for connection in (*self._idle, *self._at):
            connection.close()

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
        """Raises what the call raised, and RuntimeError where a process ended before it had a result."""
        while key not in self._results:
            self._collect(None)
        result = self._results[key]
        if isinstance(result, Exception):
            raise result
        return result

    def _collect(self, timeout: float | None) -> None:
        for connection in wait(list(self._at), timeout):
            assert isinstance(connection, Connection)
            try:
                result = connection.recv()
            except (EOFError, ConnectionError):
                raise RuntimeError("a process of the simulation was ended from outside") from None
            self._results[self._at.pop(connection)] = result
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
