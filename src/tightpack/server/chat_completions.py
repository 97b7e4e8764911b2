"""/v1/chat/completions"""

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
from tightpack.server.logprobs import chat_logprobs
from tightpack.server.prompts import chat_prompt
from tightpack.server.request_body import parse_body
from tightpack.server.request_models import ChatCompletionRequest
from tightpack.server.request_scope import arrival_time
from tightpack.server.sampling import chat_params
from tightpack.server.service import Service
from tightpack.server.stream_usage import StreamUsage

if TYPE_CHECKING:
    from tightpack.serving_loop.text_stream import CompletionDelta


def chat_completion_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        tags=["generation"],
        responses=answers("ChatCompletionResponse", 400, 401, 404, 413, 415, 429, 500, 503),
        openapi_extra=takes("ChatCompletionRequest"),
    )
    async def create_chat_completion(request: Request) -> Response:
        """Answer through the model's chat template; with `stream`, as server-sent events."""
        body = await parse_body(request, ChatCompletionRequest, service.max_body_bytes)
        service.check_model(body.model)
        params = chat_params(body, service.engine.tokenizer.vocab_size)
        prompt = await chat_prompt(service.engine, body.messages)
        generation = Generation(service, "chatcmpl", body, [prompt], params, arrival_time(request))
        answer = _Answer(service, generation, body)
        if body.stream:
            return await open_event_stream(request.receive, answer.chunks())
        return JSONResponse(await until_disconnect(request.receive, answer.whole()))

    return router


class _Answer:
    """The same choices, whole or in chunks."""

    def __init__(self, service: Service, generation: Generation, body: ChatCompletionRequest) -> None:
        self._tokenizer = service.engine.tokenizer
        self._generation = generation
        self._wants_logprobs = bool(body.logprobs)
        self._usage = StreamUsage(body.stream_options)

    async def whole(self) -> dict[str, Any]:
        generation = self._generation
        texts: list[list[str]] = [[] for _ in range(generation.num_choices)]
        choices: list[dict[str, Any]] = [
            {"index": index, "message": {}, "logprobs": None, "finish_reason": None, "stop_reason": None}
            for index in range(generation.num_choices)
        ]
        async with aclosing(generation.deltas()) as deltas:
            async for index, delta in deltas:
                texts[index].append(delta.text)
                choice = choices[index]
                logprobs = self._logprobs(delta)
                if logprobs is not None and choice["logprobs"] is not None:
                    choice["logprobs"]["content"].extend(logprobs["content"])
                elif logprobs is not None:
                    choice["logprobs"] = logprobs
                if delta.finish_reason is not None:
                    choice.update(finish_reason=delta.finish_reason, stop_reason=delta.stop_reason)
        for choice, parts in zip(choices, texts, strict=True):
            choice["message"] = {"role": "assistant", "content": "".join(parts), "refusal": None}
        return {**generation.head("chat.completion"), "choices": choices, "usage": generation.usage()}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Of each choice: the role, the text as it comes, and one chunk with the reason it ended."""
        generation = self._generation
        writer = ChunkWriter(generation.head("chat.completion.chunk"))

        def chunk(index: int, delta: dict[str, Any], **ending: Any) -> bytes:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **ending}
            return writer.chunk({"choices": [choice], **self._usage.beside(generation.usage)})

        silent = set(range(generation.num_choices))
        async with aclosing(generation.deltas()) as deltas:
            async for index, delta in deltas:
                if index in silent:
                    silent.discard(index)
                    yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
                logprobs = self._logprobs(delta)
                if delta.text or logprobs is not None:
                    yield chunk(index, {"content": delta.text}, logprobs=logprobs)
                if delta.finish_reason is not None:
                    yield chunk(index, {}, finish_reason=delta.finish_reason, stop_reason=delta.stop_reason)
        if self._usage.wanted:
            yield writer.chunk({"choices": [], "usage": generation.usage()})

    def _logprobs(self, delta: CompletionDelta) -> dict[str, Any] | None:
        if not self._wants_logprobs or not delta.logprobs:
            return None
        return chat_logprobs(self._tokenizer, delta.logprobs)
