"""The cluster's HTTP address: the same API as one server, with the router behind it."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tightpack.cluster.forward import Forward, forward
from tightpack.cluster.metrics import RouterMetrics
from tightpack.cluster.replica import Health
from tightpack.cluster.router import Router
from tightpack.server.api_error import (
    ApiError,
    answer_api_error,
    answer_http_exception,
    answer_nobody,
    unavailable,
)
from tightpack.server.app import MAX_BODY_BYTES
from tightpack.server.bearer_key import BearerKey
from tightpack.server.disconnect import ClientGoneError
from tightpack.server.request_scope import RequestScope
from tightpack.server.service import Lifecycle, package_version

_FORWARDED = {
    "/v1/completions": "POST",
    "/v1/chat/completions": "POST",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/v1/models": "GET",
    "/v1/models/{model_id:path}": "GET",
}


def create_cluster_app(
    router: Router, *, api_key: str | None = None, lifecycle: Lifecycle | None = None
) -> ASGIApp:
    """The router's application. `router.start` must be called from the loop that serves it.

    api_key: what clients must bring as a bearer token; None asks for none.
    """
    lifecycle = lifecycle or Lifecycle()
    metrics = RouterMetrics(router)

    async def pass_on(request: Request) -> Forward:
        return await forward(router, metrics, request, MAX_BODY_BYTES)

    async def health(request: Request) -> Response:
        if lifecycle.draining:
            raise unavailable()
        if not any(one.health is Health.READY for pool in router.pools.values() for one in pool):
            raise ApiError(503, "no replica is ready", code="no_replica", headers={"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    async def version(request: Request) -> Response:
        return JSONResponse({"version": package_version()})

    async def cluster(request: Request) -> Response:
        return JSONResponse(router.describe())

    async def expose(request: Request) -> Response:
        return Response(metrics.expose(), headers={"content-type": CONTENT_TYPE_LATEST})

    routes = [Route(path, pass_on, methods=[method]) for path, method in _FORWARDED.items()]
    routes += [
        Route("/health", health),
        Route("/version", version),
        Route("/cluster", cluster),
        Route("/metrics", expose),
    ]
    app: ASGIApp = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: answer_api_error,
            HTTPException: answer_http_exception,
            ClientGoneError: answer_nobody,
        },
    )
    if api_key is not None:
        app = BearerKey(app, api_key)
    return RequestScope(app, lifecycle)
