"""The streaming clients: what they ask for, what they count, and what they refuse to count."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def http_load(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module("side_by_side.http_load")
    for name in [name for name in sys.modules if name.startswith("side_by_side")]:
        del sys.modules[name]


class TinyServer:
    """Answers every request with fixed events, in chunks that are cut at awkward places."""

    def __init__(self, status: str, text: str) -> None:
        self.requests: list[dict[str, object]] = []
        self._status, self._text = status, text
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._answer, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"
        )
        self.requests.append(json.loads(await reader.readexactly(length)))
        writer.write(f"HTTP/1.1 {self._status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        data = self._text.encode()
        for start in range(0, len(data), 7):
            part = data[start : start + 7]
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        self._loop.run_until_complete(self._server.wait_closed())
        self._loop.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., TinyServer]]:
    servers: list[TinyServer] = []

    def start(*events: object, status: str = "200 OK", end: str = "data: [DONE]\n\n") -> TinyServer:
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end
        servers.append(TinyServer(status, text))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def usage(tokens: int) -> dict[str, object]:
    return {"choices": [], "usage": {"completion_tokens": tokens}}


def test_every_stream_is_read_to_its_end(http_load: ModuleType, serve: Callable[..., TinyServer]) -> None:
    server = serve({"choices": [{"text": "a"}]}, {"choices": [{"text": "é"}]}, usage(2))
    prompts = http_load.random_prompts(3, 5, 200, "salt")
    result = http_load.run_load(server.url, "some-model", prompts, 2)
    assert result.output_tokens == 6
    assert len(result.first_token_s) == 3
    assert all(0 < first <= result.seconds for first in result.first_token_s)
    assert sorted(request["prompt"] for request in server.requests) == sorted(prompts)
    assert {request["max_tokens"] for request in server.requests} == {2}
    assert all(request["stream"] and request["ignore_eos"] for request in server.requests)


def test_short_streams_are_not_a_result(http_load: ModuleType, serve: Callable[..., TinyServer]) -> None:
    server = serve(usage(1))
    with pytest.raises(RuntimeError, match=r"streams of 2 tokens were asked for, and \[1\] came"):
        http_load.run_load(server.url, "some-model", [[1, 2]], 2)


def test_a_refusal_says_what_the_server_said(http_load: ModuleType, serve: Callable[..., TinyServer]) -> None:
    server = serve(end="queue full", status="429 Too Many Requests")
    with pytest.raises(RuntimeError, match="429 Too Many Requests"):
        http_load.run_load(server.url, "some-model", [[1, 2]], 2)


def test_a_stream_cut_off_or_failed_is_an_error(
    http_load: ModuleType, serve: Callable[..., TinyServer]
) -> None:
    with pytest.raises(RuntimeError, match="ended early"):
        http_load.run_load(serve(usage(2), end="").url, "some-model", [[1, 2]], 2)
    failing = serve({"error": {"message": "out of blocks"}})
    with pytest.raises(RuntimeError, match="out of blocks"):
        http_load.run_load(failing.url, "some-model", [[1, 2]], 2)


def test_settings_become_options_of_serve(http_load: ModuleType) -> None:
    server_process = import_module("side_by_side.server_process")
    given = {"max_num_seqs": 32, "enable_prefix_caching": False, "policy": "continuous"}
    assert server_process.flags(given) == [
        "--max-num-seqs",
        "32",
        "--no-enable-prefix-caching",
        "--policy",
        "continuous",
    ]
