"""The OpenAPI description of bodies and answers, which the handlers read and write themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from tightpack.server import request_models

_REFERENCE = "#/components/schemas/{model}"

_STATUS_TEXTS = {
    400: "A parameter is wrong or not supported; `param` names it.",
    401: "The API key is missing or wrong.",
    404: "The model is not served here.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; `Retry-After` says when to try again.",
    500: "The request failed.",
    503: "The server is about to stop.",
}


def takes(model: str) -> dict[str, Any]:
    """The request body of an operation, for `openapi_extra`; `model` is a class of request_models."""
    return {"requestBody": {"required": True, "content": _json(model)}}


def answers(model: str, *error_statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation, for `responses`; `model` is a class of response_models."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": _STATUS_TEXTS[status], "content": _json("ErrorResponse")}
        for status in error_statuses
    }
    return {200: {"description": "Success", "content": _json(model)}, **errors}


def _json(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model)}}}


def describe(app: FastAPI) -> None:
    """Make `app.openapi()` hold the schemas that `takes` and `answers` refer to.

    On first use: building the models of the answers would only slow the start of the server.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _build(app: FastAPI) -> dict[str, Any]:
    from tightpack.server import response_models

    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    models = (
        request_models.CompletionRequest,
        request_models.ChatCompletionRequest,
        request_models.TokenizeRequest,
        request_models.DetokenizeRequest,
        response_models.ErrorResponse,
        response_models.CompletionResponse,
        response_models.ChatCompletionResponse,
        response_models.TokenizeResponse,
        response_models.DetokenizeResponse,
        response_models.ModelList,
        response_models.ModelCard,
        response_models.HealthResponse,
        response_models.LoadResponse,
        response_models.VersionResponse,
    )
    _, built = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    components = schema.setdefault("components", {})
    components["schemas"] = built["$defs"]
    components["securitySchemes"] = {"ApiKey": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"ApiKey": []}, {}]
    return schema
