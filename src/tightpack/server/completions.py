"""/v1/completions"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tightpack.server.describe import answers, takes
from tightpack.server.disconnect import until_disconnect
from tightpack.server.event_stream import ChunkWriter, open_event_stream
from tightpack.server.generation import Generation
from tightpack.server.logprobs import CompletionLogprobs, extend_logprobs
from tightpack.server.prompts import completion_prompts
from tightpack.server.request_body import parse_body
from tightpack.server.request_models import CompletionRequest
from tightpack.server.request_scope import arrival_time
from tightpack.server.sampling import completion_params
from tightpack.server.service import Service
from tightpack.server.stream_usage import StreamUsage

if TYPE_CHECKING:
    from tightpack.serving_loop.text_stream import CompletionDelta


def completion_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/completions",
        summary="Complete a prompt",
        tags=["generation"],
        responses=answers("CompletionResponse", 400, 401, 404, 413, 415, 429, 500, 503),
        openapi_extra=takes("CompletionRequest"),
    )
    async def create_completion(request: Request) -> Response:
        """Continue one or many prompts; with `stream`, as server-sent events."""
        body = await parse_body(request, CompletionRequest, service.max_body_bytes)
        service.check_model(body.model)
        params = completion_params(body, service.engine.tokenizer.vocab_size)
        prompts = await completion_prompts(service.engine, body.prompt, with_text=bool(body.echo))
        generation = Generation(service, "cmpl", body, prompts, params, arrival_time(request))
        answer = _Answer(service, generation, body)
        if body.stream:
            return await open_event_stream(request.receive, answer.chunks())
        return JSONResponse(await until_disconnect(request.receive, answer.whole()))

    return router


class _Choice:
    """Turns the deltas of one choice into its text and log-probabilities, the echoed prompt first."""

    def __init__(
        self, generation: Generation, index: int, body: CompletionRequest, logprobs: CompletionLogprobs
    ):
        self._prompt = generation.prompt_of(index)
        self._body = body
        self._logprobs = logprobs
        self._first = True

    def part(self, delta: CompletionDelta) -> tuple[str, dict[str, Any] | None]:
        body = self._body
        text = "" if body.max_tokens == 0 else delta.text
        logprobs: dict[str, Any] | None = None
        if self._first and body.echo:
            text = self._prompt.text + text
            if body.logprobs is not None:
                logprobs = self._logprobs.prompt(self._prompt.token_ids, delta.prompt_logprobs or ())
        self._first = False
        if body.logprobs is not None and body.max_tokens != 0 and delta.logprobs:
            logprobs = extend_logprobs(logprobs, self._logprobs.output(delta.logprobs))
        return text, logprobs


class _Answer:
    """The same choices, whole or in chunks."""

    def __init__(self, service: Service, generation: Generation, body: CompletionRequest) -> None:
        self._generation = generation
        self._scores_only = body.max_tokens == 0
        self._usage = StreamUsage(body.stream_options)
        skip_special = generation.params.skip_special_tokens
        self._choices = [
            _Choice(generation, index, body, CompletionLogprobs(service.engine.tokenizer, skip_special))
            for index in range(generation.num_choices)
        ]

    async def whole(self) -> dict[str, Any]:
        generation = self._generation
        texts: list[list[str]] = [[] for _ in self._choices]
        choices: list[dict[str, Any]] = [
            {"index": index, "text": "", "logprobs": None, "finish_reason": None, "stop_reason": None}
            for index in range(generation.num_choices)
        ]
        async with aclosing(generation.deltas()) as deltas:
            async for index, delta in deltas:
                text, logprobs = self._choices[index].part(delta)
                texts[index].append(text)
                choice = choices[index]
                if logprobs is not None:
                    choice["logprobs"] = extend_logprobs(choice["logprobs"], logprobs)
                if delta.finish_reason is not None:
                    choice.update(self._ending(delta))
        for choice, parts in zip(choices, texts, strict=True):
            choice["text"] = "".join(parts)
        usage = generation.usage(without_output=self._scores_only)
        return {**generation.head("text_completion"), "choices": choices, "usage": usage}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        generation = self._generation
        writer = ChunkWriter(generation.head("text_completion"))
        async with aclosing(generation.deltas()) as deltas:
            async for index, delta in deltas:
                text, logprobs = self._choices[index].part(delta)
                if not text and logprobs is None and delta.finish_reason is None:
                    continue
                choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
                if delta.finish_reason is not None:
                    choice.update(self._ending(delta))
                yield writer.chunk({"choices": [choice], **self._usage.beside(self._count)})
        if self._usage.wanted:
            yield writer.chunk({"choices": [], "usage": self._count()})

    def _count(self) -> dict[str, Any]:
        return self._generation.usage(without_output=self._scores_only)

    def _ending(self, delta: CompletionDelta) -> dict[str, Any]:
        if self._scores_only:
            return {"finish_reason": "length", "stop_reason": None}
        return {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}
