"""LLM and AsyncLLM: the one place that assembles checkpoint, policy and executor."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
import uuid
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tightpack.checkpoints.checkpoint import Checkpoint
from tightpack.checkpoints.open import open_checkpoint
from tightpack.checkpoints.tokenizer import Tokenizer
from tightpack.engine_args import (
    DEFAULT_MODEL,
    EngineArgs,
    resolve_limits,
    resolve_max_model_len,
)
from tightpack.executors import make_executor
from tightpack.on_load import with_quantization
from tightpack.progress import progress_bar
from tightpack.requests.prompts import Message, Prompt, as_conversations, as_prompt_list, text_or_token_ids
from tightpack.requests.request import Request
from tightpack.requests.request_output import RequestOutput
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import STANDARD, ServiceClass
from tightpack.scheduling.limits import SchedulerLimits
from tightpack.scheduling.policy import QueueFullError
from tightpack.scheduling.registry import make_policy
from tightpack.serving_loop.clock import Clock, MonotonicClock
from tightpack.serving_loop.collect import OutputCollector
from tightpack.serving_loop.engine_thread import EngineThread
from tightpack.serving_loop.executor import Executor
from tightpack.serving_loop.load import EngineLoad
from tightpack.serving_loop.loop import LoopStats, ServingLoop
from tightpack.serving_loop.text_stream import CompletionDelta, CompletionStream

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded model under one policy.

    args: as given; `limits` and `executor.description` hold what their "auto" became.
    load_seconds: phase of loading to the seconds it took.
    """

    args: EngineArgs
    checkpoint: Checkpoint
    executor: Executor
    limits: SchedulerLimits
    loop: ServingLoop
    load_seconds: Mapping[str, float]

    def with_policy(self, policy: str, **changes: Any) -> Engine:
        """The same weights and KV tensors under another policy (and changed arguments), with empty queues."""
        args = replace(self.args, policy=policy, **changes)
        limits = resolve_limits(args, self.limits.max_model_len, self.limits.num_blocks, _kind(self.executor))
        loop = ServingLoop(make_policy(policy, limits), self.executor, self.loop.clock)
        return replace(self, args=args, limits=limits, loop=loop)

    @property
    def max_model_len(self) -> int:
        return self.limits.max_model_len

    def service_class(self, name: str) -> ServiceClass:
        """The class of that name with the targets of `args`."""
        return next(one for one in self.args.service_classes if one.name == name)


def load_engine(
    args: EngineArgs, clock: Clock | None = None, *, checkpoint: Checkpoint | None = None
) -> Engine:
    """Open the checkpoint, load its weights, size the KV cache, and put the policy in front of it.

    checkpoint: takes the place of what `args.model` and `args.quantization` name.

    Raises CheckpointError for the checkpoint, ValueError for arguments that do not go together, and
    ModuleNotFoundError that says what to install where PyTorch is needed and absent.
    """
    started = time.monotonic()
    if checkpoint is None:
        checkpoint = with_quantization(open_checkpoint(args.model), args)
    max_model_len = resolve_max_model_len(args, checkpoint.spec)
    opened = time.monotonic()
    executor = make_executor(checkpoint, args, max_model_len)
    loaded = time.monotonic()
    limits = resolve_limits(args, max_model_len, executor.num_blocks, _kind(executor))
    loop = ServingLoop(make_policy(args.policy, limits), executor, clock or MonotonicClock())
    seconds = {"checkpoint": opened - started, "weights": loaded - opened}
    engine = Engine(args, checkpoint, executor, limits, loop, seconds)
    logger.info(
        "loaded %s: %s, policy %s, %s", checkpoint.name, dict(executor.description), args.policy, limits
    )
    return engine


def _kind(executor: Executor) -> str:
    """ "cpu" or "cuda"."""
    return "cpu" if executor.description["device"] == "cpu" else "cuda"


class _RequestMaker:
    """Prompts and parameters in, validated requests out."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokenizer = engine.checkpoint.tokenizer
        self._vocab_size = engine.checkpoint.spec.vocab_size
        self._eos = frozenset(self._tokenizer.eos_token_ids) | frozenset(engine.checkpoint.spec.eos_token_ids)
        self._seeds = random.Random(engine.args.seed)

    def make(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        service_class: ServiceClass,
        arrival_time: float,
    ) -> tuple[str | None, list[Request]]:
        """The prompt's text, and a request for each of the n completions. Raises TypeError or ValueError."""
        given = text_or_token_ids(prompt)
        text = given if isinstance(given, str) else None
        token_ids = tuple(self._tokenizer.encode(given) if isinstance(given, str) else given)
        self._check(token_ids, params)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        room = self._engine.max_model_len - len(token_ids)
        requests = [
            Request(
                request_id=request_id if params.n == 1 else f"{request_id}-{index}",
                prompt_token_ids=token_ids,
                params=params,
                seed=seed + index,
                max_output_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
                eos_token_ids=frozenset() if params.ignore_eos else self._eos,
                service_class=service_class,
                arrival_time=arrival_time,
            )
            for index in range(params.n)
        ]
        return text, requests

    def _check(self, token_ids: Sequence[int], params: SamplingParams) -> None:
        longest = self._engine.max_model_len
        if not token_ids:
            raise ValueError("the prompt is empty; it needs at least one token")
        if len(token_ids) >= longest:
            raise ValueError(
                f"the prompt has {len(token_ids)} tokens, and max_model_len={longest} must hold it and "
                "at least one output token; shorten the prompt"
            )
        for name, ids in (
            ("prompt_token_ids", token_ids),
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids or ()),
        ):
            beyond = next((i for i in ids if not 0 <= i < self._vocab_size), None)
            if beyond is not None:
                raise ValueError(
                    f"{name} holds token id {beyond}, and the vocabulary is 0 to {self._vocab_size - 1}"
                )

    def decoder(self, params: SamplingParams) -> Callable[[Sequence[int]], str]:
        return partial(self._tokenizer.decode, skip_special_tokens=params.skip_special_tokens)


class LLM:
    """Offline inference with vLLM's interface.

    Keyword arguments are those of `EngineArgs`; an unknown one is refused with the nearest valid name.
    """

    def __init__(self, model: str = DEFAULT_MODEL, **engine_args: Any) -> None:
        self.engine = load_engine(EngineArgs.from_keywords("LLM", {"model": model, **engine_args}))
        self._maker = _RequestMaker(self.engine)
        self._ids = itertools.count()

    def get_tokenizer(self) -> Tokenizer:
        return self.engine.checkpoint.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete the prompts, in order, under the engine's policy.

        prompts: strings, {"prompt": text} or {"prompt_token_ids": ids}; one or many.
        sampling_params: for all prompts, or one each.
        use_tqdm: show a progress bar with tokens a second.
        Raises TypeError or ValueError, before anything runs, for a prompt or parameters that cannot run. A
        request that fails while it runs ends with finish_reason "error"; the others are unharmed.
        """
        listed = as_prompt_list(prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            each = [sampling_params or SamplingParams()] * len(listed)
        else:
            each = list(sampling_params)
        wrong = next((p for p in each if not isinstance(p, SamplingParams)), None)
        if wrong is not None:
            raise TypeError(f"sampling_params holds {wrong!r}; it takes SamplingParams, one or one each")
        if len(each) != len(listed):
            raise ValueError(
                f"{len(listed)} prompts came with {len(each)} sampling_params; give one, or one each"
            )
        if not listed:
            return []
        now = self.engine.loop.clock.now()
        standard = self.engine.service_class(STANDARD.name)
        collectors, streams, pending = [], {}, []
        for prompt, params in zip(listed, each, strict=True):
            request_id = str(next(self._ids))
            text, requests = self._maker.make(prompt, params, request_id, standard, now)
            decode = self._maker.decoder(params)
            collector = OutputCollector(request_id, text, requests, decode)
            collectors.append(collector)
            for index, request in enumerate(requests):
                streams[request.request_id] = (CompletionStream(index, params, decode), collector)
                pending.append(request)
        self._run(pending, streams, use_tqdm)
        return [collector.output for collector in collectors]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        add_generation_prompt: bool = True,
        **template_arguments: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or many through the model's chat template."""
        tokenizer = self.get_tokenizer()
        prompts: list[Prompt] = [
            {
                "prompt_token_ids": tokenizer.encode(
                    tokenizer.render_chat(
                        conversation, add_generation_prompt=add_generation_prompt, **template_arguments
                    ),
                    add_special_tokens=False,
                )
            }
            for conversation in as_conversations(messages)
        ]
        return self.generate(prompts, sampling_params, use_tqdm)

    def _run(
        self,
        pending: list[Request],
        streams: Mapping[str, tuple[CompletionStream, OutputCollector]],
        use_tqdm: bool,
    ) -> None:
        loop = self.engine.loop
        waiting = list(reversed(pending))
        try:
            with progress_bar(len(pending), "Requests", hidden=not use_tqdm) as advance:
                while waiting or loop.has_unfinished:
                    self._feed(waiting)
                    steps = loop.stats.steps
                    updates = loop.step()
                    for update in updates:
                        stream, collector = streams[update.request_id]
                        if stream.finished:
                            continue
                        delta = stream.push(update)
                        collector.push(delta)
                        if delta.finish_reason is not None and update.finish_reason is None:
                            loop.abort(update.request_id)  # a stop string, which the loop cannot see
                        advance(int(delta.finish_reason is not None), len(update.token_ids))
                    wakeup = loop.next_wakeup()
                    if loop.stats.steps == steps and not updates and wakeup is not None:
                        time.sleep(max(0.0, wakeup - loop.clock.now()))
        finally:
            for request in pending:
                loop.abort(request.request_id)
            loop.step()

    def _feed(self, waiting: list[Request]) -> None:
        """Queue what the bounded queue takes; `waiting` is last first."""
        if not waiting:
            return
        try:
            while waiting:
                self.engine.loop.add(waiting[-1])
                waiting.pop()
        except QueueFullError:
            return
        self.engine.loop.close_intake()


class AsyncLLM:
    """The same engine on a thread of its own, for servers and other asyncio programs."""

    def __init__(self, model: str = DEFAULT_MODEL, **engine_args: Any) -> None:
        self.engine = load_engine(EngineArgs.from_keywords("AsyncLLM", {"model": model, **engine_args}))
        self._maker = _RequestMaker(self.engine)
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
