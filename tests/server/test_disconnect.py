"""A client that goes away takes its request with it, at whatever point it leaves."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tightpack.server.app import create_app
from tightpack.server.service import Lifecycle


class LeavingClient:
    """Speaks ASGI to the application, and disconnects when told.

    sends_all: or half of its body, and then nothing more.
    """

    def __init__(self, engine: Any, path: str, body: dict[str, Any], *, sends_all: bool = True) -> None:
        self.engine = engine
        self.lifecycle = Lifecycle()
        self.sent: list[dict[str, Any]] = []
        self.leave = asyncio.Event()
        self._app = create_app(engine, model_name="fake", lifecycle=self.lifecycle)
        self._body = json.dumps({"model": "fake", **body}).encode()
        self._path = path
        self._sends_all = sends_all
        if not sends_all:
            self._body = self._body[: len(self._body) // 2]

    async def run(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
            "server": ("server", 80),
            "client": ("client", 1),
        }
        await self._app(scope, self._receive, self._send)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(5):
            while not condition(self):
                await asyncio.sleep(0.001)

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body, "more_body": not self._sends_all}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


PROMPTS: dict[str, Any] = {
    "one": [*b"never"],
    "several": [[*b"never"], [*b"slow and long"]],
    "n": [*b"never"],
}


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_before_the_first_token(engine: Any, stream: bool, kind: str) -> None:
    body = {"prompt": PROMPTS[kind], "stream": stream, "n": 3 if kind == "n" else 1}
    client = LeavingClient(engine, "/v1/completions", body)
    task = asyncio.create_task(client.run())
    await client.until(lambda c: len(c.engine.active) == (2 if kind == "several" else 1))
    client.leave.set()
    await asyncio.wait_for(task, 1)
    assert not engine.active
    assert client.lifecycle.in_flight == 0


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
async def test_within_its_own_request(engine: Any, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody's lost connection is no failure of the server: nothing is logged."""
    client = LeavingClient(engine, path, {"prompt": "never"}, sends_all=False)
    client.leave.set()
    await asyncio.wait_for(client.run(), 1)
    assert client.sent[0]["status"] == 499
    assert client.lifecycle.in_flight == 0
    assert not caplog.records


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_within_a_stream(engine: Any, path: str) -> None:
    engine.tokenizer.render_chat = lambda messages, **more: "slow and very long prompt"
    body: dict[str, Any] = {"stream": True}
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": "x"}]
    else:
        body |= {"prompt": [*b"slow and very long prompt"], "max_tokens": 100}
    client = LeavingClient(engine, path, body)
    task = asyncio.create_task(client.run())
    await client.until(lambda c: len(c.sent) > 4)
    assert len(engine.active) == 1
    client.leave.set()
    await asyncio.wait_for(task, 1)
    assert not engine.active
    assert not any(b"[DONE]" in message.get("body", b"") for message in client.sent)


async def test_left_requests_count_as_aborted(engine: Any) -> None:
    client = LeavingClient(engine, "/v1/completions", {"prompt": [*b"slow and long"]})
    task = asyncio.create_task(client.run())
    await client.until(lambda c: c.engine.active)
    client.leave.set()
    await task
    from httpx import ASGITransport, AsyncClient

    async with AsyncClient(transport=ASGITransport(client._app), base_url="http://server") as other:
        text = (await other.get("/metrics")).text
    assert 'vllm:request_success_total{finished_reason="abort",model_name="fake"} 1.0' in text


async def test_a_client_that_stays_gets_all(engine: Any) -> None:
    client = LeavingClient(engine, "/v1/completions", {"prompt": [*b"slow"], "stream": True})
    await client.run()
    assert client.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert client.sent[-2]["body"] == b"data: [DONE]\n\n"
