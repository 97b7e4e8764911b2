"""From the bytes of a request to a checked body, or to a 4xx that names the parameter at fault."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from tightpack.requests.arguments import nearest_hint
from tightpack.server.api_error import ApiError
from tightpack.server.disconnect import ClientGoneError
from tightpack.server.request_models import field_names

Body = TypeVar("Body", bound=BaseModel)

# Read and thrown away beyond the limit, so that a client that sends all before it reads gets the answer.
_DISCARD_FACTOR = 4


async def parse_body(request: Request, model: type[Body], max_bytes: int) -> Body:
    """The body of a request as `model`.

    JSON is parsed by pydantic rather than by the standard library: it refuses lone surrogates and endless
    nesting, which would otherwise come out as failures further down.
    """
    _check_content_type(request)
    raw = await read_body(request, max_bytes)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise explain(error, model) from None


def _check_content_type(request: Request) -> None:
    given = request.headers.get("content-type")
    kind = (given or "").split(";")[0].strip().lower()
    if given is not None and kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(
            415, f"the body must be application/json, not {kind[:80]!r}", code="unsupported_content_type"
        )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The bytes of a body. Raises ApiError (413) for one of more than `max_bytes`, and ClientGoneError where
    the client leaves before it has sent all."""
    too_large = ApiError(413, f"the body is larger than {max_bytes} bytes", code="request_too_large")
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > max_bytes * _DISCARD_FACTOR:
                raise too_large
            if size <= max_bytes:
                pieces.append(piece)
    except ClientDisconnect:
        raise ClientGoneError from None
    if size > max_bytes:
        raise too_large
    return b"".join(pieces)


def explain(error: ValidationError, model: type[BaseModel]) -> ApiError:
    """The first fault as an ApiError; an unknown field goes first, since it often explains a missing one."""
    faults = error.errors(include_url=False)
    fault = next((one for one in faults if one["type"] == "extra_forbidden"), faults[0])
    location, kind = fault["loc"], fault["type"]
    param = _path(location) or None
    match kind:
        case "json_invalid":
            detail = fault["msg"].removeprefix("Invalid JSON: ")
            return ApiError(400, f"the body is not valid JSON: {detail}", code="invalid_json")
        case "extra_forbidden":
            message, code = f"unknown parameter {param!r}{_hint(model, location)}", "unknown_parameter"
        case "missing":
            message, code = f"{param} is required", "missing_required_parameter"
        case _ if not location:
            return ApiError(400, "the body must be a JSON object", code="invalid_type")
        case (
            "unsupported_parameter"
            | "unsupported_value"
            | "unknown_parameter"
            | "invalid_type"
            | "invalid_value"
        ):
            message, code = f"{param}: {fault['msg']}", kind
        case _:
            code = "invalid_type" if kind.endswith("_type") else "invalid_value"
            message = f"{param}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
    return ApiError(400, message, param=param, code=code)


def _path(location: tuple[Any, ...]) -> str:
    """("messages", 0, "content") as "messages[0].content"."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step[:80]}" if path else step[:80]
    return path


def _hint(model: type[BaseModel], location: tuple[Any, ...]) -> str:
    hint = nearest_hint(str(location[-1]), field_names(model, location[:-1]), otherwise=None)
    return hint and f"; {hint}"
