"""The router in front of server processes without a model, which are killed, stopped and drained."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("aiohttp", reason="needs the extra cluster")

from tightpack.cluster.app import create_cluster_app
from tightpack.cluster.config import RoutingConfig, parse_config
from tightpack.cluster.fleet import Announced
from tightpack.cluster.router import Router
from tightpack.server.listening import address_of, open_socket
from tightpack.server.run import DrainingServer
from tightpack.server.service import Lifecycle

FAKE_SERVER = Path(__file__).parents[1] / "server" / "fake_server.py"
ROUTING = {"poll_interval": 0.05, "dead_after": 0.6, "retry_for": 6.0}


class Processes:
    """A fleet of processes that were started by hand."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []
        self._members: list[Announced] = []
        self._spare: list[Announced] = []
        self.forgotten: list[str] = []

    def launch(self, *delays: float, announced: int | None = None) -> None:
        """One a delay (seconds a token of prompts that begin with "slow"), all at once.

        announced: how many the router is told of now; the rest by the next `announce`.
        """
        for delay in delays:
            self.started.append(
                subprocess.Popen(
                    [sys.executable, str(FAKE_SERVER), str(delay), "20"], stdout=subprocess.PIPE, text=True
                )
            )
        for process in self.started[len(self._spare) + len(self._members) :]:
            assert process.stdout is not None
            found = re.match(r"ready (\S+)", process.stdout.readline())
            assert found is not None
            name = f"r{len(self._spare) + len(self._members)}"
            self._spare.append(Announced(name, "main", found[1], process.pid, "here"))
        self.announce(announced)

    def announce(self, count: int | None = None) -> None:
        self._members += self._spare[:count]
        self._spare = self._spare[len(self._spare) if count is None else count :]

    async def members(self, known: int) -> tuple[int, Sequence[Announced]]:
        while known == len(self._members):
            await asyncio.sleep(0.02)
        return len(self._members), tuple(self._members)

    async def forget(self, replica_id: str) -> None:
        self.forgotten.append(replica_id)

    async def scale(self, pool: str, replicas: int) -> None:
        raise AssertionError("the pool's size is fixed")

    async def failure(self) -> str | None:
        return None


@pytest.fixture
def fleet() -> Iterator[Processes]:
    fleet = Processes()
    yield fleet
    for process in fleet.started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
async def client(fleet: Processes) -> AsyncIterator[httpx.AsyncClient]:
    """Of a router over `fleet`; every request may wait for replicas that are launched later."""
    config = parse_config({"model": "fake", "pools": {"main": {}}, "routing": ROUTING})
    assert config.routing == RoutingConfig(poll_interval=0.05, dead_after=0.6, retry_for=6.0)
    router, lifecycle = Router(config, fleet, "key"), Lifecycle()
    started = asyncio.Event()
    server = DrainingServer(
        create_cluster_app(router, lifecycle=lifecycle), router, lifecycle, on_ready=started.set
    )
    with open_socket("127.0.0.1", 0) as sock:
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        await started.wait()
        await router.start()
        async with httpx.AsyncClient(base_url=address_of(sock), timeout=30) as client:
            yield client
        server.begin_drain()
        await serving


def ask(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": [*prompt.encode()], "max_tokens": 20, **more}


async def events(client: httpx.AsyncClient, body: dict[str, Any], on_first: Callable[[], Any]) -> list[str]:
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        lines = []
        async for line in answer.aiter_lines():
            if line:
                lines.append(line)
                if len(lines) == 1:
                    on_first()
        return lines


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def count(client: httpx.AsyncClient, name: str) -> float:
    text = (await client.get("/metrics")).text
    return sum(map(float, re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)))


async def health(client: httpx.AsyncClient) -> list[str]:
    pools = (await client.get("/cluster")).json()["pools"]
    return [one["health"] for one in pools["main"]["replicas"]]


async def test_answers_pass_through(client: httpx.AsyncClient, fleet: Processes) -> None:
    fleet.launch(0.05)
    whole = await client.post("/v1/completions", json=ask("abc"), headers={"x-request-id": "mine"})
    assert whole.json()["choices"][0]["text"] == "cba"
    assert whole.headers["x-tightpack-replica"] == "main/r0"
    assert whole.headers["x-request-id"] == "mine"
    assert (await client.get("/v1/models")).json()["data"][0]["id"] == "fake"
    assert (await client.get("/health")).json() == {"status": "ok"}
    for path, body, status, code in (
        ("/v1/completions", {"model": "other", "prompt": "x"}, 404, "model_not_found"),
        ("/v1/completions", ask("x", temprature=1), 400, "unknown_parameter"),
        ("/v1/completions", ask("full"), 429, "queue_full"),
        ("/v1/chat", {}, 404, "unknown_path"),
    ):
        answer = await client.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), path

    # Token by token: 11 of 0.05 s each are not one piece at the end.
    times: list[float] = []
    async with client.stream("POST", "/v1/completions", json=ask("slow stream", stream=True)) as answer:
        async for line in answer.aiter_lines():
            if line:
                times.append(time.monotonic())
    assert len(times) == 13
    assert times[-1] - times[0] > 0.4
    assert sum(b - a > 0.02 for a, b in itertools.pairwise(times)) >= 8


async def test_a_lost_replica_costs_only_what_had_begun(client: httpx.AsyncClient, fleet: Processes) -> None:
    """Of two answers one had begun to stream, and of the whole one there was nothing yet."""
    fleet.launch(1.0, 0.0, announced=1)
    whole = asyncio.create_task(client.post("/v1/completions", json=ask("slow whole")))
    first = asyncio.Event()
    begun = asyncio.create_task(events(client, ask("slow", stream=True), first.set))
    await first.wait()
    fleet.announce()
    fleet.started[0].kill()
    *_, error, done = await begun
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert done == "data: [DONE]"
    answer = await whole
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == "elohw wols"
    assert answer.headers["x-tightpack-replica"] == "main/r1"
    assert await count(client, "tightpack:cluster_retried_total") == 1
    assert await count(client, "tightpack:cluster_broken_streams_total") == 1
    await until(lambda: "r0" in fleet.forgotten)
    assert await health(client) == ["ready"]


async def test_a_stream_that_had_not_begun_is_retried(client: httpx.AsyncClient, fleet: Processes) -> None:
    fleet.launch(60.0, 0.0, announced=1)
    stream = asyncio.create_task(events(client, ask("slow", stream=True), lambda: None))
    while await count(client, "tightpack:cluster_requests_total") == 0:
        await asyncio.sleep(0.02)
    fleet.started[0].kill()
    fleet.announce()
    assert len(await stream) == 6


async def test_a_replica_that_hangs_is_dead_after_a_while(
    client: httpx.AsyncClient, fleet: Processes
) -> None:
    fleet.launch(0.0, 0.0, announced=1)
    await client.post("/v1/completions", json=ask("x"))
    fleet.started[0].send_signal(signal.SIGSTOP)
    stuck = asyncio.create_task(client.post("/v1/completions", json=ask("abc")))
    await until(lambda: "r0" in fleet.forgotten)
    fleet.announce()
    assert (await stuck).json()["choices"][0]["text"] == "cba"


async def test_a_draining_replica_finishes_and_gets_nothing_new(
    client: httpx.AsyncClient, fleet: Processes
) -> None:
    fleet.launch(0.1, 0.0, announced=1)
    first = asyncio.Event()
    stream = asyncio.create_task(events(client, ask("slow", stream=True), first.set))
    await first.wait()
    fleet.announce()
    fleet.started[0].send_signal(signal.SIGTERM)
    for _ in range(5):
        answer = await client.post("/v1/completions", json=ask("abc"))
        assert answer.headers["x-tightpack-replica"] == "main/r1"
    assert len(await stream) == 6
    assert await count(client, "tightpack:cluster_broken_streams_total") == 0


async def test_a_client_that_leaves_frees_its_replica(client: httpx.AsyncClient, fleet: Processes) -> None:
    fleet.launch(0.5)
    async with client.stream("POST", "/v1/completions", json=ask("slow", stream=True)) as answer:
        await anext(answer.aiter_lines())

    async def running() -> int:
        pools = (await client.get("/cluster")).json()["pools"]
        return int(pools["main"]["replicas"][0]["num_running"] + pools["main"]["replicas"][0]["under_way"])

    deadline = time.monotonic() + 1.5  # the stream itself would take 2.5 s
    while await running():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_refusals_are_passed_on_when_all_have_refused(
    client: httpx.AsyncClient, fleet: Processes
) -> None:
    fleet.launch(0.0, 0.0)
    while await health(client) != ["ready", "ready"]:
        await asyncio.sleep(0.02)
    answer = await client.post("/v1/completions", json=ask("full"))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert await count(client, "tightpack:cluster_requests_total") == 2


async def test_without_replicas_it_says_so(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).status_code == 503
    started = time.monotonic()
    answer = await client.post("/v1/completions", json=ask("x"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
    assert 5 < time.monotonic() - started < 12
