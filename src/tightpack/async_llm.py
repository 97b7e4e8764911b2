"""AsyncLLM: requests as they come, each with a stream of its own."""

from __future__ import annotations

import asyncio
import time
import uuid
import weakref
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Any

from tightpack.checkpoints.tokenizer import Tokenizer
from tightpack.engine import load_engine
from tightpack.engine_args import DEFAULT_MODEL, EngineArgs
from tightpack.request_maker import RequestMaker
from tightpack.requests.prompts import Prompt
from tightpack.requests.request import Request
from tightpack.requests.request_output import RequestOutput
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import STANDARD, ServiceClass
from tightpack.serving_loop.collect import OutputCollector
from tightpack.serving_loop.engine_thread import EngineThread
from tightpack.serving_loop.executor import Executor
from tightpack.serving_loop.load import EngineLoad
from tightpack.serving_loop.loop import LoopStats, ServingLoop
from tightpack.serving_loop.text_stream import CompletionDelta, CompletionStream


class AsyncLLM:
    """The same engine on a thread of its own, for servers and other asyncio programs."""

    def __init__(self, model: str = DEFAULT_MODEL, **engine_args: Any) -> None:
        self.engine = load_engine(EngineArgs.from_keywords("AsyncLLM", {"model": model, **engine_args}))
        self._maker = RequestMaker(self.engine)
        self._thread = EngineThread(self.engine.loop)
        self._draining = False
        # Whoever drops it without `close` (a notebook's cell run again) gets the memory back.
        self._finalizer = weakref.finalize(self, _shut_down, self._thread, self.engine.executor)

    @property
    def args(self) -> EngineArgs:
        return self.engine.args

    @property
    def model_name(self) -> str:
        return self.args.served_model_name or self.engine.checkpoint.name

    @property
    def max_model_len(self) -> int:
        return self.engine.max_model_len

    @property
    def max_queue(self) -> int:
        return self.args.max_queue

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.checkpoint.tokenizer

    @property
    def service_classes(self) -> tuple[ServiceClass, ...]:
        return self.args.service_classes

    @property
    def is_running(self) -> bool:
        return self._thread.is_running and not self._draining

    def stats(self) -> LoopStats:
        return self._thread.stats

    async def load(self) -> EngineLoad:
        """The queue and the step times, between two steps. Raises RuntimeError when the engine is closed."""
        limits = self.engine.limits

        def snapshot(loop: ServingLoop) -> EngineLoad:
            unfinished = (request for request in loop.requests if not request.finished)
            return loop.meter().load(loop.policy, limits, unfinished)

        return await self._thread.ask(snapshot)

    async def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        *,
        request_id: str | None = None,
        service_class: ServiceClass | None = None,
    ) -> AsyncGenerator[CompletionDelta]:
        """What is new of each completion as it comes, those of n interleaved.

        service_class: the targets to schedule by; the engine's `standard` if not given.

        Raises at the first item: TypeError or ValueError for what cannot run, QueueFullError. Closing the
        iterator early aborts the request, whose blocks are free before the next step.
        """
        _, requests = self._make(prompt, sampling_params, request_id, service_class)
        async with aclosing(self._deltas(requests, sampling_params)) as deltas:
            async for delta in deltas:
                yield delta

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str | None = None,
        *,
        service_class: ServiceClass | None = None,
    ) -> AsyncGenerator[RequestOutput]:
        """The output so far, whole, after every step that adds to it; vLLM's interface."""
        text, requests = self._make(prompt, sampling_params, request_id, service_class)
        collector = OutputCollector(
            request_id or requests[0].request_id, text, requests, self._maker.decoder(sampling_params)
        )
        async with aclosing(self._deltas(requests, sampling_params)) as deltas:
            async for delta in deltas:
                yield collector.push(delta)

    async def drain(self, timeout: float | None = None) -> bool:
        """Take no new requests and wait for those under way; whether all ended within `timeout` seconds."""
        self._draining = True
        self._thread.close_intake()
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._thread.is_idle:
            if deadline is not None and time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    def close(self) -> None:
        """Stop the engine thread and free the executor."""
        self._finalizer()

    def _make(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str | None,
        service_class: ServiceClass | None,
    ) -> tuple[str | None, list[Request]]:
        if self._draining:
            raise RuntimeError("the engine is draining and takes no new requests")
        identity = request_id or uuid.uuid4().hex
        chosen = service_class or self.engine.service_class(STANDARD.name)
        return self._maker.make(prompt, params, identity, chosen, self._thread.now())

    async def _deltas(
        self, requests: Sequence[Request], params: SamplingParams
    ) -> AsyncGenerator[CompletionDelta]:
        decode = self._maker.decoder(params)
        streams = {r.request_id: CompletionStream(i, params, decode) for i, r in enumerate(requests)}
        subscription = self._thread.submit(requests)
        unfinished = dict.fromkeys(streams)
        try:
            while unfinished:
                event = await subscription.events.get()
                if isinstance(event, Exception):
                    unfinished.clear()  # none was admitted
                    raise event
                if event.request_id not in unfinished:
                    continue
                stream = streams[event.request_id]
                delta = stream.push(event)
                if delta.finish_reason is not None:
                    del unfinished[event.request_id]
                    if event.finish_reason is None:
                        self._abort([event.request_id])  # a stop string, which the loop cannot see
                yield delta
        finally:
            if unfinished:
                self._abort(unfinished)

    def _abort(self, request_ids: Iterable[str]) -> None:
        with suppress(RuntimeError):  # a closed engine has no requests
            self._thread.abort(request_ids)


def _shut_down(thread: EngineThread, executor: Executor) -> None:
    thread.close()
    executor.close()
