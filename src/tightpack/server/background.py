"""The server on a thread, for a process whose main thread is somebody else's."""

from __future__ import annotations

import asyncio
import socket
import threading

from tightpack.server.app import create_app
from tightpack.server.engine import ServingEngine
from tightpack.server.run import DrainingServer
from tightpack.server.service import Lifecycle


class BackgroundServer:
    """Takes requests from when it is made until it is stopped. Raises RuntimeError if it cannot start."""

    def __init__(
        self,
        engine: ServingEngine,
        *,
        model_name: str,
        sock: socket.socket,
        api_key: str | None = None,
        drain_timeout: float = 30.0,
    ) -> None:
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None
        ready = threading.Event()

        def on_ready() -> None:
            self._loop = asyncio.get_running_loop()
            ready.set()

        lifecycle = Lifecycle()
        app = create_app(engine, model_name=model_name, api_key=api_key, lifecycle=lifecycle)
        self._server = DrainingServer(app, engine, lifecycle, drain_timeout=drain_timeout, on_ready=on_ready)

        def run() -> None:
            try:
                self._server.run_until_drained(sock)
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, name="tightpack-server", daemon=True)
        self._thread.start()
        ready.wait()
        if self._loop is None:
            raise RuntimeError("the server could not start; its error is in the log above")

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and self._engine.is_running

    def stop(self) -> None:
        """Drain, close the engine and wait for it; again has no effect."""
        if self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._server.begin_drain)
        self._thread.join()
