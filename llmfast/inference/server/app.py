"""The application: routes, limits, metrics and errors put together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from llmfast.inference.server.errors import handle_errors
from llmfast.inference.server.limits import Limits as LimitsMiddleware
from llmfast.inference.server.metrics import CountRequests
from llmfast.inference.server.routes import routes
from llmfast.inference.server.service import Service


def make_app(service: Service, *, api_key: str = "", cors: Sequence[str] = ()) -> FastAPI:
    """An ASGI application that serves a model. It starts the engine's thread, and ends it.

    Args:
        service: the model and its limits.
        api_key: that clients must send; empty for none.
        cors: origins (``https://example.org``, or ``*``) whose pages browsers let read the answers.
    """

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        try:
            yield
        finally:
            await service.worker.stop()

    # FastAPI's own pages load scripts from elsewhere.
    app = FastAPI(title="llmfast", lifespan=running, docs_url=None, redoc_url=None, openapi_url=None)
    router = routes(service)
    app.include_router(router)
    handle_errors(app)
    limits = service.limits
    app.add_middleware(LimitsMiddleware, api_key=api_key, max_body=limits.max_body, body_timeout=limits.body_timeout)
    if cors:  # before the key is checked: browsers ask for permission without it
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    paths = frozenset(route.path for route in router.routes if "{" not in route.path)
    app.add_middleware(CountRequests, metrics=service.metrics, paths=paths)
    return app
