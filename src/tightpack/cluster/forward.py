"""One HTTP request's way through the router: to a replica, to another if that one is lost, and back."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tightpack.cluster.asked import Asked, read_asked
from tightpack.cluster.metrics import RouterMetrics
from tightpack.cluster.replica import Replica, Sent
from tightpack.cluster.router import Router
from tightpack.cluster.routing import Choice
from tightpack.cluster.traffic import Arrived
from tightpack.server.api_error import ApiError
from tightpack.server.disconnect import ClientGoneError, until_disconnect
from tightpack.server.event_stream import DONE, ChunkWriter
from tightpack.server.request_body import read_body

logger = logging.getLogger(__name__)

# Of a replica's answer, what is the router's to say or of one connection only.
_NOT_PASSED = frozenset(
    {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding", "x-request-id"}
)
_LOST = (aiohttp.ClientError, TimeoutError, OSError)
# A request that has been on so many replicas when they died may be what kills them.
_MOST_LOST = 4


@dataclass(slots=True)
class _Refusal:
    """A replica's 429 or 503, which another replica may spare the client."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]]


@dataclass(slots=True)
class _Attempts:
    tried: set[Replica] = field(default_factory=set)
    refusal: _Refusal | None = None
    lost: int = 0


class Forward:
    """An ASGI application for one request whose body has been read.

    A replica that is lost before anything of its answer was passed on costs the client nothing but time: the
    request goes to another one, for `retry_for` seconds. Afterwards the stream ends with an error event of
    code "replica_lost", since another replica's answer could be another one. A 429 is passed on when every
    replica of the pools in question has refused.
    """

    def __init__(self, router: Router, metrics: RouterMetrics, request: Request, body: bytes) -> None:
        self._router = router
        self._metrics = metrics
        self._method = request.method
        self._path = request.url.path
        self._body = body
        self._asked = read_asked(body)
        self._generates = self._path in ("/v1/completions", "/v1/chat/completions")
        self._headers = {
            name: value
            for name in ("content-type", "x-request-id")
            if (value := request.headers.get(name)) is not None
        }
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._answer(scope, receive, send))
        except ClientGoneError:
            logger.debug("the client left")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        router = self._router
        began = router.now()
        arrived = router.arrived(self._asked) if self._generates else None
        attempts = _Attempts()
        router.num_waiting += 1
        waiting = True
        try:
            while True:
                choice = None
                if attempts.lost < _MOST_LOST:
                    choice = router.choose(self._asked, attempts.tried)
                if choice is None:
                    if attempts.refusal is not None and attempts.refusal.status == 429:
                        await _send_whole(send, attempts.refusal)
                        return
                    left = began + router.config.routing.retry_for - router.now()
                    if left <= 0 or attempts.lost >= _MOST_LOST:
                        await _no_replica(attempts).response()(scope, receive, send)
                        return
                    attempts.tried.clear()
                    await router.until_changed(min(left, 1.0))
                    continue
                router.num_waiting -= 1
                waiting = False
                if await self._attempt(choice, attempts, arrived, send):
                    return
                router.num_waiting += 1
                waiting = True
        finally:
            router.num_waiting -= waiting

    async def _attempt(
        self, choice: Choice, attempts: _Attempts, arrived: Arrived | None, send: Send
    ) -> bool:
        """Whether the client has its answer, be it an error."""
        router, replica = self._router, choice.replica
        sent = router.send(choice, self._asked)
        if self._generates:
            self._metrics.routed(self._asked, choice)
        try:
            async with sent.attempt:
                return await self._exchange(choice, sent, attempts, arrived, send)
        except _LOST as error:
            logger.warning("replica %s failed: %s: %s", replica.id, type(error).__name__, error)
            router.suspect(replica)
            attempts.tried.add(replica)
            attempts.lost += 1
            if self._started:
                self._metrics.broken.labels(replica.pool).inc()
                await _end_broken(send)
                return True
            self._metrics.retried.labels(replica.pool).inc()
            return False
        finally:
            router.ended(replica, sent)

    async def _exchange(
        self, choice: Choice, sent: Sent, attempts: _Attempts, arrived: Arrived | None, send: Send
    ) -> bool:
        router, replica = self._router, choice.replica
        url = replica.url + self._path
        async with router.session.request(
            self._method, url, data=self._body or None, headers=self._headers
        ) as answer:
            headers = [(name.lower(), value) for name, value in answer.raw_headers if _passes(name.lower())]
            headers.append((b"x-tightpack-replica", f"{replica.pool}/{replica.id}".encode()))
            if answer.status in (429, 503):
                attempts.refusal = _Refusal(answer.status, await answer.read(), headers)
                attempts.tried.add(replica)
                if answer.status == 503:
                    router.leaves(replica)
                return False
            if answer.content_type == "text/event-stream":
                tokens: int | None = await self._pass_stream(answer, headers, choice, sent, send)
            else:
                body = await answer.read()
                self._started = True
                await _send_whole(send, _Refusal(answer.status, body, headers))
                tokens = _output_tokens(body)
        if arrived is not None:
            arrived.output_tokens = tokens
        return True

    async def _pass_stream(
        self,
        answer: aiohttp.ClientResponse,
        headers: list[tuple[bytes, bytes]],
        choice: Choice,
        sent: Sent,
        send: Send,
    ) -> int:
        """Pass whole events on as they come; returns how many. ClientError if the stream breaks off."""
        rest, ended, count = b"", False, 0
        async for received in answer.content.iter_any():
            # Half an event is held back: if the rest never comes, an error must be able to follow.
            whole, separator, rest = (rest + received).rpartition(b"\n\n")
            if not separator:
                continue
            if not self._started:
                self._started = True
                self._metrics.first_token(choice, self._router.now() - sent.at)
                await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            count += whole.count(b"\n\n") + 1
            ended = (whole + separator).endswith(DONE)
            await send({"type": "http.response.body", "body": whole + separator, "more_body": True})
        if not ended:
            raise aiohttp.ClientPayloadError("the stream ended before its time")
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return count


async def forward(router: Router, metrics: RouterMetrics, request: Request, max_body_bytes: int) -> Forward:
    """Read a request and check its model. Raises ApiError (404, 413)."""
    body = await read_body(request, max_body_bytes)
    forwarded = Forward(router, metrics, request, body)
    _check_model(forwarded._asked, router.config.model)
    return forwarded


def _check_model(asked: Asked, model: str) -> None:
    if asked.model not in (None, model):
        raise ApiError(
            404,
            f"the model {asked.model!r} does not exist; this cluster has {model!r}",
            param="model",
            code="model_not_found",
        )


def _no_replica(attempts: _Attempts) -> ApiError:
    if attempts.lost:
        return ApiError(
            503,
            f"the request was lost with {attempts.lost} replicas, one after the other; nothing was streamed",
            code="replica_lost",
            headers={"Retry-After": "5"},
        )
    return ApiError(503, "no replica is ready", code="no_replica", headers={"Retry-After": "5"})


async def _end_broken(send: Send) -> None:
    error = ApiError(
        502,
        "the replica was lost while its answer was streamed, which is incomplete; send the request again",
        code="replica_lost",
    )
    event = ChunkWriter({}).chunk(error.body)
    await send({"type": "http.response.body", "body": event + DONE, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_whole(send: Send, answer: _Refusal) -> None:
    length = (b"content-length", str(len(answer.body)).encode())
    headers = [*answer.headers, length]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def _passes(name: bytes) -> bool:
    return name.decode("latin-1") not in _NOT_PASSED


def _output_tokens(body: bytes) -> int | None:
    try:
        answer: Mapping[str, Any] = json.loads(body)
        return int(answer["usage"]["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        return None
