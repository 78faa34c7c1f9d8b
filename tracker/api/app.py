"""create_app: the only wiring."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tracker.api.access import AccessLog
from tracker.api.auth import Authentication, Keyring
from tracker.api.drain import Drain
from tracker.api.garbage import spare_collector
from tracker.api.metrics import Metrics
from tracker.api.requests import State
from tracker.api.responses import Errors
from tracker.api.routes import OPERATIONS
from tracker.api.routing import RouteTree
from tracker.api.watch import Watch
from tracker.api.webhooks import Webhooks
from tracker.errors import SchemaMismatch, StoreError
from tracker.settings import Settings
from tracker.store.ending import end
from tracker.store.store import open_store

__all__ = ["create_app", "from_environment"]

if TYPE_CHECKING:
    from tracker.api.tracing import Tracing

TRACES_ASKED_FOR = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

logger = logging.getLogger("tracker.api")


def create_app(settings: Settings, tracing: Tracing | None = None) -> Starlette:
    """The ASGI application. Its lifespan opens the store and sweeps; raises SchemaMismatch at start-up.

    Requests are traced by ``tracing``; without one as the OTEL_* variables of the environment have it.
    """
    metrics, access = Metrics(), AccessLog(settings.access_log)
    drain = Drain(settings.drain_seconds, worker=settings.workers > 1)
    tracing = tracing or _tracing(os.environ)
    if tracing is not None:
        metrics.trace = tracing.store_span

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        async with open_store(settings, observer=metrics) as store:
            try:
                await store.scripts.enroll()
            except SchemaMismatch:
                raise
            except StoreError as error:
                logger.warning("starting without the store, which answers 503 until it is there: %s", error)
            tasks = [asyncio.create_task(store.sweeper.run())]
            if not settings.in_memory:
                tasks.append(asyncio.create_task(store.watch()))
            if settings.webhook_url:
                tasks.append(asyncio.create_task(Webhooks(settings, store, metrics).run()))
            try:
                with drain.on_signals(store.hub.stop):
                    yield {"store": store, "settings": settings, "metrics": metrics, "drain": drain}
            finally:
                access.flush()
                metrics.flush()
                await end(tasks)
                if tracing is not None:
                    await tracing.close()

    http: ASGIApp = Errors(Authentication(RouteTree(OPERATIONS), Keyring.of(settings)))
    if settings.cors_origins:
        http = CORSMiddleware(
            http,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Request-ID"],
            expose_headers=["Location", "Retry-After", "X-Request-ID"],
        )
    http = Watch(http, metrics, access, drain)
    return Tracker(http if tracing is None else tracing.around(http), lifespan)


def _tracing(environ: Mapping[str, str]) -> Tracing | None:
    """None where nobody asks for traces: then nothing that makes them is imported, nor paid for."""
    asked = any(environ.get(variable) for variable in TRACES_ASKED_FOR)
    refused = environ.get("OTEL_TRACES_EXPORTER") == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not asked or refused:
        return None
    try:
        from tracker.api.tracing import Tracing
    except ImportError as error:
        logger.warning("OTEL_* variables ask for traces, but %s: pip install 'tracker[otel]'", error)
        return None
    try:
        return Tracing.of(environ)
    except ValueError as error:
        logger.warning("no traces: %s", error)
        return None


class Tracker(Starlette):
    """Starlette for the lifespan; requests go straight to ``http``, past middleware that every one would pay for."""

    def __init__(self, http: ASGIApp, lifespan: Callable[[Starlette], AbstractAsyncContextManager[State]]) -> None:
        super().__init__(lifespan=lifespan)
        self._http = http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def from_environment() -> Starlette:
    """For uvicorn's workers, which make their own app: ``tracker serve`` has put its options into the environment."""
    app = create_app(Settings.load())
    spare_collector()
    return app
