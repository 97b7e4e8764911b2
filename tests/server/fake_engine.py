"""An engine without a model: bytes for tokens, and as output the prompt again, reversed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from tightpack.requests.outputs import TokenLogprobs
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import STANDARD, ServiceClass
from tightpack.requests.service_class_settings import SERVICE_CLASSES
from tightpack.scheduling.policy import QueueFullError, UnattainableError
from tightpack.scheduling.step_time import PRIOR
from tightpack.serving_loop.load import ClassLoad, EngineLoad
from tightpack.serving_loop.loop import LoopStats
from tightpack.serving_loop.text_stream import CompletionDelta

BOS, EOS = 256, 257
SPECIAL = {BOS: "<s>", EOS: "</s>"}


class ByteTokenizer:
    """One token a byte, and two special tokens."""

    vocab_size = 258
    has_chat_template = True
    special_token_ids = frozenset(SPECIAL)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        kept = [i for i in token_ids if not (skip_special_tokens and i in SPECIAL)]
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return SPECIAL[token_id].encode() if token_id in SPECIAL else bytes([token_id])

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        if any(m["role"] == "tool" for m in messages):
            raise ValueError("the chat template refuses the messages: no tools here")
        lines = [f"{m['role']}: {m['content']}" for m in messages]
        return "\n".join(lines + ["assistant: "] * add_generation_prompt)


def entry(token_id: int, position: int, count: int) -> TokenLogprobs:
    """A made-up distribution: the token itself at position 0, another one likelier at the others."""
    logprob = -0.25 * (position + 1)
    rival = (token_id + 1) % 256
    top = ((token_id, logprob), (rival, -math.inf)) if position == 0 else ((rival, -0.1), (token_id, logprob))
    return TokenLogprobs(token_id, logprob, 1 if position == 0 else 2, top[:count])


class FakeEngine:
    """Satisfies `ServingEngine`. Prompts choose what happens by what they begin with:

    "full" is refused, "late" too since it would miss its target by 2.5 s, "invalid" raises ValueError,
    "broken" fails after two tokens, "crash" raises then, "slow" takes `delay` seconds a token, "never" gives
    nothing.
    """

    def __init__(self, max_model_len: int = 200, delay: float = 0.005) -> None:
        self.max_model_len = max_model_len
        self.max_queue = 1000
        self.tokenizer = ByteTokenizer()
        self.is_running = True
        self.delay = delay
        self.active: set[str] = set()
        self.calls: list[tuple[list[int], SamplingParams, ServiceClass]] = []
        self.closed = False
        self.service_classes = SERVICE_CLASSES
        self.counters = LoopStats()

    def stats(self) -> LoopStats:
        self.counters.num_running = len(self.active)
        return self.counters

    async def load(self) -> EngineLoad:
        running = len(self.active)
        return EngineLoad(
            policy="fake",
            num_running=running,
            num_waiting=0,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            by_class={"standard": ClassLoad(running)} if running else {},
            ahead=ClassLoad(running),
            decodes=running,
            decode_context=10 * running,
            free_kv_tokens=1000,
            step_seconds=PRIOR,
            relative_error=0.25,
            num_observed=0,
            ends_in_steps=[10.0] * running,
            output_tokens=10.0,
            longest_output_tokens=20.0,
            max_wait_s=0.05,
            prompt_room_s=None,
        )

    async def drain(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.active and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        return not self.active

    def close(self) -> None:
        self.closed = True

    async def stream(
        self,
        prompt: Mapping[str, Any],
        sampling_params: SamplingParams,
        *,
        request_id: str | None = None,
        service_class: ServiceClass | None = None,
    ) -> AsyncGenerator[CompletionDelta, None]:
        ids: list[int] = prompt["prompt_token_ids"]
        self.calls.append((ids, sampling_params, service_class or STANDARD))
        text = self.tokenizer.decode(ids)
        if text.startswith("full"):
            raise QueueFullError("the queue holds 4 requests, its limit")
        if text.startswith("late"):
            raise UnattainableError("the first token would come about 2.5 s late", 2.5)
        if text.startswith("invalid"):
            raise ValueError("seed must be lucky, got 4")
        assert request_id is not None
        assert request_id not in self.active
        self.active.add(request_id)
        try:
            async for delta in self._run(ids, text, sampling_params):
                yield delta
        finally:
            self.active.discard(request_id)

    async def _run(
        self, ids: list[int], text: str, params: SamplingParams
    ) -> AsyncGenerator[CompletionDelta, None]:
        plain = [i for i in ids if i not in SPECIAL]
        room = self.max_model_len - len(ids)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        output = [*plain[::-1], EOS]
        finish = "stop" if len(output) <= limit else "length"
        output = output[:limit]
        for step, token in enumerate(output):
            await asyncio.sleep(3600 if text.startswith("never") else self.delay * text.startswith("slow"))
            if step == 2 and text.startswith("crash"):
                raise ZeroDivisionError("a bug")
            failed = self.closed or (step == 2 and text.startswith("broken"))
            last = step == len(output) - 1
            for index in range(params.n):
                prompt_logprobs = None
                if step == 0 and params.prompt_logprobs is not None:
                    prompt_logprobs = tuple(entry(i, 1, params.prompt_logprobs) for i in ids[1:])
                yield CompletionDelta(
                    index=index,
                    text="" if failed else self.tokenizer.decode([token]),
                    token_ids=() if failed else (token,),
                    time=0.0,
                    num_output_tokens=step + (not failed),
                    logprobs=() if params.logprobs is None else (entry(token, step, params.logprobs),),
                    prompt_logprobs=prompt_logprobs,
                    finish_reason="error" if failed else finish if last else None,
                    error="the engine was closed" if self.closed else "out of luck" if failed else None,
                )
            if failed:
                return
