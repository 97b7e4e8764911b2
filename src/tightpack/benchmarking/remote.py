"""Drives an OpenAI-compatible server with a workload over HTTP, streaming, from one asyncio loop.

The clock of every latency is this client's: a request's starts when it was due (open loop) or sent (closed
loop), so that what the network, the server's HTTP and a client that lags behind cost is inside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tightpack.benchmarking.openai_api import AnswerError, Server, StreamedAnswer
from tightpack.benchmarking.outcomes import Drive, Outcome, Progress, Watch
from tightpack.benchmarking.sse import EventParser
from tightpack.benchmarking.workload import Workload
from tightpack.requests.request import FinishReason
from tightpack.requests.service_class import STANDARD

if TYPE_CHECKING:
    import httpx

# Without a byte for so long a request counts as failed.
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Remote:
    """A server as a target; its one policy is its own."""

    server: Server

    def run(
        self,
        policy: str,
        workload: Workload,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        watch: Watch | None = None,
    ) -> Drive:
        del policy
        return asyncio.run(_Run(self.server, workload, on_progress, watch).until_done())


class _Run:
    """A drive under way."""

    def __init__(
        self,
        server: Server,
        workload: Workload,
        on_progress: Callable[[Progress], None] | None,
        watch: Watch | None,
    ) -> None:
        self._server = server
        self._workload = workload
        self._on_progress = on_progress
        self._watch = watch
        classes = {one.shape.service_class.name for one in workload.requests}
        self._name_tier = classes != {STANDARD.name}
        self._sent = self._ended = self._output_tokens = 0
        self._silent: dict[int, Outcome] = {}
        self._over = asyncio.Event()

    async def until_done(self) -> Drive:
        import httpx

        # A connection for each request under way: it is the server they wait for, not the pool.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx.Timeout(_TIMEOUT_S, connect=30)
        server = self._server
        async with httpx.AsyncClient(
            base_url=server.base_url, headers=server.headers, limits=limits, timeout=timeout, trust_env=False
        ) as client:
            self._start = time.monotonic()
            self.outcomes = [
                Outcome(planned, self._start + planned.shape.arrival_s) for planned in self._workload.requests
            ]
            load = self._open_loop if self._workload.clients is None else self._closed_loop
            sending = asyncio.create_task(load(client))
            watching = asyncio.create_task(self._watch_waits())
            over = asyncio.create_task(self._over.wait())
            await asyncio.wait({sending, over}, return_when=asyncio.FIRST_COMPLETED)
            given_up = not sending.done()
            for task in (sending, watching, over):
                task.cancel()
            results = await asyncio.gather(sending, watching, over, return_exceptions=True)
        if not given_up and isinstance(results[0], BaseException):
            raise results[0]
        return Drive(self._workload, tuple(self.outcomes), self._start, given_up=given_up)

    async def _open_loop(self, client: httpx.AsyncClient) -> None:
        async with asyncio.TaskGroup() as tasks:
            for index, outcome in enumerate(self.outcomes):
                await asyncio.sleep(max(0.0, outcome.arrival_time - time.monotonic()))
                tasks.create_task(self._ask(client, index))

    async def _closed_loop(self, client: httpx.AsyncClient) -> None:
        unsent = iter(range(len(self.outcomes)))

        async def one_client() -> None:
            for index in unsent:
                self.outcomes[index].arrival_time = time.monotonic()
                await self._ask(client, index)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workload.clients or 1):
                tasks.create_task(one_client())

    async def _ask(self, client: httpx.AsyncClient, index: int) -> None:
        outcome = self.outcomes[index]
        self._sent += 1
        self._silent[index] = outcome
        try:
            await self._stream(client, index, outcome)
        except AnswerError as error:
            outcome.finish_reason, outcome.error = FinishReason.ERROR, str(error)
        except Exception as error:
            # Whatever else fails, fails this request alone, and is reported with it.
            outcome.finish_reason, outcome.error = FinishReason.ERROR, f"{type(error).__name__}: {error}"
        self._silent.pop(index, None)
        self._ended += 1
        if self._watch is not None:
            self._watch.ended(outcome)
        self._report()

    async def _stream(self, client: httpx.AsyncClient, index: int, outcome: Outcome) -> None:
        path = "/chat/completions" if self._server.endpoint == "chat" else "/completions"
        body = self._server.body(outcome, name_tier=self._name_tier)
        answer = StreamedAnswer(outcome)
        parser = EventParser()
        async with client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise AnswerError(_refusal(response))
            async for received in response.aiter_raw():
                now = time.monotonic()
                for event in parser.push(received):
                    new = answer.take(event, now)
                    if new:
                        self._silent.pop(index, None)
                        self._output_tokens += new
                        self._report()
        answer.end()

    def _report(self) -> None:
        if self._on_progress is not None:
            elapsed = time.monotonic() - self._start
            self._on_progress(
                Progress(self._sent, self._ended, len(self.outcomes), self._output_tokens, elapsed)
            )
        self._maybe_give_up()

    def _maybe_give_up(self) -> None:
        since = next(iter(self._silent.values())).arrival_time if self._silent else None
        if self._watch is not None and self._watch.gives_up(time.monotonic(), since):
            self._over.set()

    async def _watch_waits(self) -> None:
        """A wait grows while nothing happens, so it is looked at now and then."""
        while True:
            await asyncio.sleep(0.25)
            self._maybe_give_up()


def _refusal(response: httpx.Response) -> str:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    return f"HTTP {response.status_code}: {message}"
