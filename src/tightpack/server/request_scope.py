"""The outermost layer: request ids, requests in flight, HEAD, refusals while draining, failures."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import cast

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tightpack.server.api_error import ApiError, unavailable
from tightpack.server.service import Lifecycle

logger = logging.getLogger(__name__)

# Still answered while draining: /health says 503 itself.
_OPEN_WHILE_DRAINING = frozenset({"/health", "/metrics"})
_SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


def arrival_time(request: Request) -> float:
    """`time.monotonic()` when the request's head came in."""
    return cast(float, request.scope["tightpack.arrival"])


class RequestScope:
    """ASGI middleware. A client's own x-request-id is kept, so that logs on both sides can be matched.

    HEAD is answered as GET is, without the body (RFC 9110, section 9.3.2): load balancers ask /health so.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["tightpack.arrival"] = time.monotonic()
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given if _SANE_ID.fullmatch(given) else b"req_" + uuid.uuid4().hex.encode()
        started = False
        without_body = scope["method"] == "HEAD"
        if without_body:
            scope = {**scope, "method": "GET"}

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            elif without_body:
                message = {**message, "body": b""}
            await send(message)

        if self._lifecycle.draining and scope["path"] not in _OPEN_WHILE_DRAINING:
            await unavailable().response()(scope, receive, send_with_id)
            return
        self._lifecycle.in_flight += 1
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if started:
                raise
            error = ApiError(500, "internal error", code="internal_error")
            await error.response()(scope, receive, send_with_id)
        finally:
            self._lifecycle.in_flight -= 1
