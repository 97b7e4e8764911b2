"""How a server process ends."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tightpack.server.listening import address_of, open_socket
from tightpack.server.run import run_server

Launch = Callable[..., Any]
SLOW = {"model": "fake", "prompt": [*b"slow and long"], "max_tokens": 20, "stream": True}


def test_drains_what_runs_and_refuses_the_rest(launch: Launch) -> None:
    server = launch("0.05", "20", fake=True)
    with httpx.Client(base_url=server.url) as client:
        with client.stream("POST", "/v1/completions", json=SLOW) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            server.signal()
            while not any("draining" in line for line in server.printed):
                time.sleep(0.01)
            for method, path in (("GET", "/health"), ("POST", "/v1/completions")):
                refused = httpx.request(method, server.url + path)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "server_shutting_down"
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "stop"
    assert server.wait() == 0
    assert server.printed[-2:] == ["draining 1\n", "ended\n"]


def test_idle_server_ends_at_once(launch: Launch) -> None:
    server = launch("0", "20", fake=True)
    with httpx.Client(base_url=server.url) as client:
        client.get("/health")  # a connection kept alive must not hold it up
        started = time.monotonic()
        server.signal(signal.SIGINT)
        assert server.wait() == 0
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_at_once(launch: Launch, number: signal.Signals) -> None:
    server = launch("5", "60", fake=True)
    with httpx.Client(base_url=server.url) as client:
        # The first token is five seconds away, so the request is sent without waiting for the answer.
        connection = socket.create_connection(server.url.removeprefix("http://").split(":"))
        body = json.dumps(SLOW)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        while server.metric("vllm:num_requests_running") == 0:
            time.sleep(0.01)
        server.signal(number)
        while client.get("/health").status_code != 503:
            time.sleep(0.01)
        started = time.monotonic()
        server.signal(number)
        assert server.wait() == 128 + number
        assert time.monotonic() - started < 2
        connection.close()


def test_drain_timeout_ends_what_is_left(launch: Launch) -> None:
    server = launch("0.5", "0.3", fake=True)
    with httpx.stream("POST", server.url + "/v1/completions", json=SLOW) as answer:
        lines = answer.iter_lines()
        next(lines)
        started = time.monotonic()
        server.signal()
        *_, failure, done = [line for line in lines if line]
    assert done == "data: [DONE]"
    assert "the engine was closed" in json.loads(failure[6:])["error"]["message"]
    assert server.wait() == 0
    assert time.monotonic() - started < 6


def test_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            open_socket("127.0.0.1", port)


def test_unknown_host() -> None:
    with pytest.raises(OSError, match="'no such host'"):
        open_socket("no such host", 0)


def test_address() -> None:
    with open_socket("127.0.0.1", 0) as sock:
        assert address_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_the_second_of_two_servers_that_start_together_says_what_to_do(engine: Any) -> None:
    """Neither listens while its model loads, so both could bind the port."""
    second = open_socket("127.0.0.1", 0)
    port = second.getsockname()[1]
    with open_socket("127.0.0.1", port) as first:
        first.listen()
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}.*choose another port"):
            run_server(engine, model_name="fake", sock=second)
    assert engine.closed
