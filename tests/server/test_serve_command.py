"""`tightpack serve` as a process: its ready line, its errors, and how it ends with a real engine."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tightpack.cli.main import app

LONG = {"prompt": "Once upon a time", "max_tokens": 60, "ignore_eos": True, "stream": True}


def serve(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tightpack.cli.main", "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_ready_lines(server: Any) -> None:
    """The second one is a command that works."""
    ready, curl = (line for line in server.printed if line.startswith(("ready ", "try: ")))
    for part in (
        server.model,
        server.url,
        "policy chunked-prefill",
        "KV cache 8192 tokens",
        "loaded in",
        "after the process began",
    ):
        assert part in ready
    words = shlex.split(curl.removeprefix("try: "))
    assert words[0] == "curl"
    assert words[2:4] == ["-H", "Content-Type: application/json"]
    body = json.loads(words[words.index("-d") + 1])
    answer = httpx.post(words[1], json=body, timeout=60)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]


def test_no_pytorch_and_no_more_memory_than_foretold(server: Any, request: pytest.FixtureRequest) -> None:
    process = Path(f"/proc/{server.process.pid}")
    if request.config.getoption("--executor") == "torch" or not process.exists():
        pytest.skip("of the native executor, on Linux")
    assert "libtorch" not in (process / "maps").read_text()
    resident = re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
    assert resident is not None
    facts = json.loads(CliRunner().invoke(app, ["inspect", "--json"]).stdout)
    pool = 512 * 16 * facts["kv_bytes_per_token"]
    most = facts["cpu_memory"]["weights"] + pool + facts["cpu_memory"]["process"]
    assert int(resident[1]) * 1024 < most


def test_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve("--port", str(port))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--policy", "continous"), "did you mean 'continuous'?"),
        (("--log-level", "loud"), "must be one of critical, error, warning, info, debug"),
        (("--api-key", ""), "is empty"),
        (("--port", "70000"), "--port"),
    ],
)
def test_wrong_options(options: tuple[str, ...], said: str) -> None:
    done = serve(*options)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_drains_and_a_second_one_does_not(launch: Callable[..., Any]) -> None:
    """Two servers at once, since loading a model is what takes the time."""
    options = ("--max-model-len", "256", "--num-blocks", "64", "--num-threads", "1")
    with ThreadPoolExecutor() as pool:
        drained, killed = pool.map(lambda more: launch(*options, *more), [(), ("--api-key", "k")])
    assert httpx.get(f"{killed.url}/v1/models").status_code == 401

    body = {"model": drained.model, **LONG}
    with httpx.stream("POST", f"{drained.url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        drained.signal()
        *_, last, done = [line for line in lines if line]
    assert done == "data: [DONE]"
    assert json.loads(last[6:])["choices"][0]["finish_reason"] == "length"
    assert drained.wait() == 0

    headers = {"authorization": "Bearer k"}
    url = f"{killed.url}/v1/completions"
    with httpx.stream("POST", url, json={**body, "max_tokens": 200}, headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        killed.signal()
        while httpx.get(f"{killed.url}/health").status_code != 503:
            time.sleep(0.01)
        started = time.monotonic()
        killed.signal()
        assert killed.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - started < 2
