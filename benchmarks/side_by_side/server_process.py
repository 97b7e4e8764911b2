"""`tightpack serve` as a process: started, waited for, stopped."""

from __future__ import annotations

import http.client
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

_POLL_S = 0.005
_READY_WITHIN_S = 120.0


@dataclass(frozen=True)
class Served:
    """started: of the process, on time.perf_counter. ready_s: from there to the first 200 of /health."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    started: float
    ready_s: float


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Engine arguments as options of `tightpack serve`."""
    found = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{option}" if value else f"--no-{option}")
        else:
            found += [f"--{option}", str(value)]
    return found


@contextmanager
def serving(python: str, model: str, options: Sequence[str] = ()) -> Iterator[Served]:
    """A server that answers. Raises RuntimeError if it ends, or is not ready in two minutes."""
    port = _free_port()
    command = [python, "-m", "tightpack.cli.main", "serve", model, "--port", str(port), *options]
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            ready = _wait(process, port, started, command, log)
            yield Served(f"http://127.0.0.1:{port}", port, process, started, ready)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(
    process: subprocess.Popen[bytes], port: int, started: float, command: Sequence[str], log: IO[bytes]
) -> float:
    """Seconds from the start to the first 200 of /health."""
    while not _healthy(port):
        if process.poll() is not None:
            log.seek(0)
            said = log.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}:\n{said}")
        if time.perf_counter() - started > _READY_WITHIN_S:
            raise RuntimeError(f"{' '.join(command)} was not ready in {_READY_WITHIN_S:.0f} s")
        time.sleep(_POLL_S)
    return time.perf_counter() - started


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
