"""/tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from tightpack.server.api_error import invalid
from tightpack.server.describe import answers, takes
from tightpack.server.prompts import encode, render
from tightpack.server.request_body import parse_body
from tightpack.server.request_models import DetokenizeRequest, TokenizeRequest
from tightpack.server.service import Service


def token_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["tokens"])
    errors = (400, 401, 404, 413, 415, 503)

    @router.post(
        "/tokenize",
        summary="Text or messages to token ids",
        responses=answers("TokenizeResponse", *errors),
        openapi_extra=takes("TokenizeRequest"),
    )
    async def tokenize(request: Request) -> JSONResponse:
        body = await parse_body(request, TokenizeRequest, service.max_body_bytes)
        service.check_model(body.model)
        tokenizer = service.engine.tokenizer
        if (body.prompt is None) == (body.messages is None):
            raise invalid("give either prompt or messages", "prompt", "missing_required_parameter")
        text = body.prompt or ""
        if body.messages is not None:
            text = render(
                tokenizer, body.messages, add_generation_prompt=body.add_generation_prompt is not False
            )
        elif body.add_generation_prompt is not None:
            raise invalid("add_generation_prompt needs messages", "add_generation_prompt")
        special = body.add_special_tokens
        ids = await encode(
            tokenizer, text, add_special_tokens=body.messages is None if special is None else special
        )
        names = [tokenizer.token_bytes(one).decode("utf-8", errors="replace") for one in ids]
        return JSONResponse(
            {
                "count": len(ids),
                "max_model_len": service.engine.max_model_len,
                "tokens": ids,
                "token_strs": names if body.return_token_strs else None,
            }
        )

    @router.post(
        "/detokenize",
        summary="Token ids to text",
        responses=answers("DetokenizeResponse", *errors),
        openapi_extra=takes("DetokenizeRequest"),
    )
    async def detokenize(request: Request) -> JSONResponse:
        """Special tokens are written out."""
        body = await parse_body(request, DetokenizeRequest, service.max_body_bytes)
        service.check_model(body.model)
        tokenizer = service.engine.tokenizer
        for token in body.tokens:
            if token >= tokenizer.vocab_size:
                raise invalid(
                    f"tokens: id {token} is outside the vocabulary of {tokenizer.vocab_size} tokens", "tokens"
                )
        return JSONResponse({"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)})

    return router
