"""create_app: the only wiring."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tracker.api.auth import Authentication, Keyring
from tracker.api.requests import State
from tracker.api.responses import Errors
from tracker.api.routes import OPERATIONS
from tracker.api.routing import RouteTree
from tracker.api.stopping import told_to_stop
from tracker.api.webhooks import Webhooks
from tracker.errors import SchemaMismatch, StoreError
from tracker.settings import Settings
from tracker.store.store import open_store

__all__ = ["create_app", "from_environment"]

logger = logging.getLogger("tracker.api")


def create_app(settings: Settings) -> Starlette:
    """The ASGI application. Its lifespan opens the store and sweeps; raises SchemaMismatch at start-up."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        async with open_store(settings) as store:
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
                tasks.append(asyncio.create_task(Webhooks(settings, store).run()))
            try:
                with told_to_stop(store.hub.stop):
                    yield {"store": store, "settings": settings}
            finally:
                await _end(tasks)

    http: ASGIApp = Errors(Authentication(RouteTree(OPERATIONS), Keyring.of(settings)))
    if settings.cors_origins:
        http = CORSMiddleware(
            http,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=["Location", "Retry-After"],
        )
    return Tracker(http, lifespan)


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels until it works: before Python 3.12 ``asyncio.wait_for``, which the driver uses, may swallow one."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=0.1)


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
    return create_app(Settings.load())
