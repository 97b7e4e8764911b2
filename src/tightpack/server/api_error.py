"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than 2xx.

    param: the parameter at fault as a path ("messages[0].content"), if one is.
    code: what a program can compare; snake_case.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, default)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """400 for a parameter."""
    return ApiError(400, message, param=param, code=code)


def unavailable() -> ApiError:
    """503 while the server drains."""
    return ApiError(
        503, "the server is shutting down", code="server_shutting_down", headers={"Retry-After": "5"}
    )


async def answer_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    """404 for unknown paths and 405, which the router raises itself."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    match error.status_code:
        case 404:
            message, code = f"unknown path {path!r}", "unknown_path"
        case 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            message, code = f"{path} takes {allowed}, not {method}", "method_not_allowed"
        case _:
            message, code = str(error.detail), "http_error"
    return ApiError(error.status_code, message, code=code, headers=error.headers).response()


async def answer_nobody(request: Request, error: Exception) -> Response:
    """For ClientGoneError: 499, nginx's status for a client that left; it is only ever logged."""
    return Response(status_code=499)
