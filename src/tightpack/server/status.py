"""/v1/models, /health, /load, /version and /metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from tightpack.server.api_error import ApiError, unavailable
from tightpack.server.describe import answers
from tightpack.server.service import Service, package_version


def status_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["status"])

    def card() -> dict[str, Any]:
        return {
            "id": service.model_name,
            "object": "model",
            "created": service.started,
            "owned_by": "tightpack",
            "max_model_len": service.engine.max_model_len,
        }

    @router.get(
        "/v1/models",
        summary="The models served",
        responses=answers("ModelList", 401),
    )
    async def list_models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [card()]})

    # The name is read from the path rather than declared: it may hold slashes, and no value is malformed.
    @router.get(
        "/v1/models/{model_id:path}",
        summary="One model",
        responses=answers("ModelCard", 401, 404),
        openapi_extra={
            "parameters": [{"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}]
        },
    )
    async def show_model(request: Request) -> JSONResponse:
        service.check_model(request.path_params["model_id"])
        return JSONResponse(card())

    @router.get(
        "/health",
        summary="Whether requests are taken",
        responses=answers("HealthResponse", 503),
    )
    async def health() -> JSONResponse:
        """503 while the server drains before it stops, and when the engine has failed."""
        if service.lifecycle.draining:
            raise unavailable()
        if not service.engine.is_running:
            raise ApiError(503, "the engine has stopped", code="engine_stopped")
        return JSONResponse({"status": "ok"})

    @router.get(
        "/load",
        summary="What a request would meet now",
        responses=answers("LoadResponse", 401, 503),
    )
    async def load() -> JSONResponse:
        """The queue by service class and the learned step times, from which routers predict the TTFT."""
        if not service.engine.is_running:
            raise ApiError(503, "the engine has stopped", code="engine_stopped")
        # This request is itself one of those in flight.
        in_flight = service.lifecycle.in_flight - 1
        return JSONResponse({"server_load": in_flight, **asdict(await service.engine.load())})

    @router.get("/version", summary="The version", responses=answers("VersionResponse", 401))
    async def version() -> JSONResponse:
        return JSONResponse({"version": package_version()})

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(service.metrics.expose(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
