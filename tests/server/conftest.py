"""An application in this process over an engine without a model, and real server processes."""

from __future__ import annotations

import importlib.util
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tightpack.server.app import create_app

HERE = Path(__file__).parent


def _load(name: str) -> Any:
    # Test folders are no packages, so a helper beside the tests is loaded by its path.
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def engine() -> Any:
    return _load("fake_engine").FakeEngine()


@pytest.fixture
async def client(engine: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(engine, model_name="fake"), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@dataclass
class ServerProcess:
    """A server on a free port of this machine; what it prints is read all the time."""

    command: list[str]
    model: str
    url: str = ""
    printed: list[str] = field(default_factory=list)

    def start(self, timeout: float = 120) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()
        deadline = time.monotonic() + timeout
        while not self.url:
            line = lines.get(timeout=max(0.1, deadline - time.monotonic()))
            assert line is not None, "the server ended:\n" + "".join(self.printed)
            found = re.match(r"ready .*?(http://\S+)", line)
            self.url = found[1] if found else ""
        assert httpx.get(f"{self.url}/health").status_code == 200

    def _read(self, lines: queue.Queue[str | None]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line)
            lines.put(line)
        lines.put(None)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        return self.process.wait(timeout)

    def metric(self, name: str) -> float:
        """A metric that has no label but the model's."""
        text = httpx.get(f"{self.url}/metrics").text
        return float(re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)[0])

    def until_idle(self, timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        while self.metric("vllm:num_requests_running") or self.metric("vllm:num_requests_waiting"):
            assert time.monotonic() < deadline, "requests still run"
            time.sleep(0.02)


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers, which are gone at the end; with `fake` one without a model."""
    started: list[ServerProcess] = []

    def start(*options: str, fake: bool = False) -> ServerProcess:
        if fake:
            server = ServerProcess([sys.executable, str(HERE / "fake_server.py"), *options], "fake")
        else:
            command = [sys.executable, "-m", "tightpack.cli.main", "serve", "--port", "0", *options]
            server = ServerProcess(command, "smollm2-135m")
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(launch: Callable[..., ServerProcess], request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """The bundled model behind a real process."""
    limits = ("--max-model-len", "1024", "--num-blocks", "512", "--max-num-seqs", "16", "--max-queue", "40")
    # In PyTorch float32, so that what is computed in another order rounds to the same tokens.
    dtype = "float32" if request.config.getoption("--executor") == "torch" else "auto"
    server = launch(*limits, "--dtype", dtype)
    yield server
    server.signal()
    assert server.wait() == 0, "".join(server.printed)
