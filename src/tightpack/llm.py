"""LLM: offline inference, all prompts at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tightpack.checkpoints.tokenizer import Tokenizer
from tightpack.engine import load_engine
from tightpack.engine_args import DEFAULT_MODEL, EngineArgs
from tightpack.progress import progress_bar
from tightpack.request_maker import RequestMaker
from tightpack.requests.prompts import Message, Prompt, as_conversations, as_prompt_list
from tightpack.requests.request import Request
from tightpack.requests.request_output import RequestOutput
from tightpack.requests.sampling_params import SamplingParams
from tightpack.requests.service_class import STANDARD
from tightpack.scheduling.policy import QueueFullError
from tightpack.serving_loop.collect import OutputCollector
from tightpack.serving_loop.text_stream import CompletionStream


class LLM:
    """Offline inference with vLLM's interface.

    Keyword arguments are those of `EngineArgs`; an unknown one is refused with the nearest valid name.
    """

    def __init__(self, model: str = DEFAULT_MODEL, **engine_args: Any) -> None:
        self.engine = load_engine(EngineArgs.from_keywords("LLM", {"model": model, **engine_args}))
        self._maker = RequestMaker(self.engine)
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
