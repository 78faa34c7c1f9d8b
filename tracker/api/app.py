"""create_app: the only wiring."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from tracker.api.auth import Authentication, Keyring
from tracker.api.requests import State
from tracker.api.responses import ERRORS
from tracker.api.routes import OPERATIONS
from tracker.api.routing import RouteTree
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
            try:
                yield {"store": store, "settings": settings}
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    middleware = [Middleware(Authentication, keys=Keyring.of(settings))]
    if settings.cors_origins:
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST", "PUT", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
                expose_headers=["Location", "Retry-After"],
            ),
        )
    return Starlette(
        routes=[RouteTree(OPERATIONS)], middleware=middleware, exception_handlers=ERRORS, lifespan=lifespan
    )


def from_environment() -> Starlette:
    """For uvicorn's workers, which make their own app: ``tracker serve`` has put its options into the environment."""
    return create_app(Settings.load())
