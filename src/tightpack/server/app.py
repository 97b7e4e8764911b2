"""The application: endpoints in front of an engine."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from tightpack.server.api_error import ApiError, answer_api_error, answer_http_exception, answer_nobody
from tightpack.server.bearer_key import BearerKey
from tightpack.server.chat_completions import chat_completion_routes
from tightpack.server.completions import completion_routes
from tightpack.server.describe import describe
from tightpack.server.disconnect import ClientGoneError
from tightpack.server.engine import ServingEngine
from tightpack.server.metrics import ServerMetrics
from tightpack.server.request_scope import RequestScope
from tightpack.server.service import Lifecycle, Service, package_version
from tightpack.server.status import status_routes
from tightpack.server.tokens import token_routes

MAX_BODY_BYTES = 16 * 2**20


def create_app(
    engine: ServingEngine,
    *,
    model_name: str,
    api_key: str | None = None,
    allowed_origins: Sequence[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
    lifecycle: Lifecycle | None = None,
) -> FastAPI:
    """An OpenAI-compatible HTTP server over `engine`, whose life is the caller's business.

    model_name: the name clients use.
    api_key: what clients must bring as a bearer token; None asks for none.
    allowed_origins: of web pages that may call this server from a browser (CORS); "*" for all.
    lifecycle: set its `draining` to refuse new requests.
    """
    lifecycle = lifecycle or Lifecycle()
    metrics = ServerMetrics(engine.stats, model_name, engine.service_classes)
    service = Service(engine, model_name, metrics, lifecycle, max_body_bytes)
    app = FastAPI(
        title="tightpack",
        version=package_version(),
        description="A language model behind OpenAI's API. "
        "Unknown and unsupported parameters are refused by name.",
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            ApiError: answer_api_error,
            HTTPException: answer_http_exception,
            ClientGoneError: answer_nobody,
        },
    )
    for routes in (completion_routes, chat_completion_routes, token_routes, status_routes):
        app.include_router(routes(service))
    describe(app)
    # The last one added is the outermost.
    if api_key is not None:
        app.add_middleware(BearerKey, api_key=api_key)
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    app.add_middleware(RequestScope, lifecycle=lifecycle)
    return app
