"""The server process: its socket, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from tightpack.server.app import create_app
from tightpack.server.engine import ServingEngine
from tightpack.server.listening import cannot_listen
from tightpack.server.service import Lifecycle

# What is left to an answer after its request has ended: writing it.
_FLUSH_S = 1.0


def run_server(
    engine: ServingEngine,
    *,
    model_name: str,
    sock: socket.socket,
    api_key: str | None = None,
    allowed_origins: Sequence[str] = (),
    drain_timeout: float = 30.0,
    access_log: bool = False,
    on_ready: Callable[[], None] = lambda: None,
    on_drain: Callable[[int], None] = lambda in_flight: None,
) -> None:
    """Serve until SIGTERM or SIGINT; returns when what ran is answered, and leaves the engine closed.

    The first signal starts to drain: new requests get 503, those under way have `drain_timeout` seconds. A
    second one ends the process at once, with status 128 + signal. Call from the main thread.
    on_ready: called when requests are taken. on_drain: called with the number of requests under way.
    """
    lifecycle = Lifecycle()
    app = create_app(
        engine,
        model_name=model_name,
        api_key=api_key,
        allowed_origins=allowed_origins,
        lifecycle=lifecycle,
    )
    server = DrainingServer(
        app,
        engine,
        lifecycle,
        drain_timeout=drain_timeout,
        access_log=access_log,
        on_ready=on_ready,
        on_drain=on_drain,
    )
    server.run_until_drained(sock)


class Drainable(Protocol):
    """What answers behind an application, as far as ending it goes."""

    async def drain(self, timeout: float) -> Any:
        """Take no new request and wait, `timeout` seconds at the most, for those that run."""

    def close(self) -> None: ...


class DrainingServer(uvicorn.Server):
    """uvicorn with two-stage signals."""

    def __init__(
        self,
        app: ASGIApp,
        engine: Drainable,
        lifecycle: Lifecycle,
        *,
        drain_timeout: float = 30.0,
        access_log: bool = False,
        on_ready: Callable[[], None] = lambda: None,
        on_drain: Callable[[int], None] = lambda in_flight: None,
    ) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=access_log,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._engine = engine
        self._lifecycle = lifecycle
        self._drain_timeout = drain_timeout
        self._on_ready = on_ready
        self._on_drain = on_drain
        self._drain_task: asyncio.Task[None] | None = None
        self._engine_closed = False

    def run_until_drained(self, sock: socket.socket) -> None:
        try:
            self.run(sockets=[sock])
        finally:
            self.close_engine()

    def begin_drain(self) -> None:
        """What the first signal does, for a server that is told otherwise. Call from its event loop."""
        if not self._lifecycle.draining:
            self._lifecycle.draining = True
            self._start_drain()

    def close_engine(self) -> None:
        """Close it once; requests that still run end with an error."""
        if not self._engine_closed:
            self._engine_closed = True
            self._engine.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for sock in sockets or ():
            try:
                # Two servers that load at the same time can both be bound; the first to listen has the port.
                sock.listen(self.config.backlog)
            except OSError as error:
                host, port = sock.getsockname()[:2]
                raise cannot_listen(host, port, error) from error
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            # Not through the event loop, which a second signal must not wait for.
            if self._lifecycle.draining:
                os._exit(128 + number)
            self._lifecycle.draining = True
            loop.call_soon_threadsafe(self._start_drain)

        before: dict[signal.Signals, Any] = {
            number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start_drain(self) -> None:
        self._on_drain(self._lifecycle.in_flight)
        self._drain_task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await self._engine.drain(self._drain_timeout)
            await self._wait_for_answers()
            if self._lifecycle.in_flight:
                # Closing the engine ends what is left with an error that its clients are told.
                await asyncio.to_thread(self.close_engine)
                await self._wait_for_answers()
        finally:
            self.should_exit = True

    async def _wait_for_answers(self) -> None:
        deadline = time.monotonic() + _FLUSH_S
        while self._lifecycle.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
