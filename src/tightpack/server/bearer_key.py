"""`Authorization: Bearer KEY`"""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tightpack.server.api_error import ApiError

# For load balancers and Prometheus, which have no key.
_OPEN = frozenset({"/health", "/metrics"})


class BearerKey:
    """ASGI middleware: 401 for requests without the key."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            given = Headers(scope=scope).get("authorization", "")
            scheme, _, key = given.partition(" ")
            # In constant time, so that how long a refusal takes says nothing of the key.
            if scheme.lower() != "bearer" or not hmac.compare_digest(
                key.strip().encode("latin-1"), self._key
            ):
                error = ApiError(
                    401,
                    "the API key is wrong" if given else "no API key given; send Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)
