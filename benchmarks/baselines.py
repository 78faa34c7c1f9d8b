"""What the tracker is compared with: the floor of its own stack, and the plain way to do its work.

Each is an ASGI application that answers as the tracker does and, but for the last, does nothing for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tracker.settings import Settings
from tracker.store.scripts import Scripts
from tracker.store.snapshot import timestamp

__all__ = ["noop", "plain", "raw"]

BASE = "/api/active-sessions"
ANSWER = to_json({"updated": True, "expiresAt": timestamp(0), "stopRequested": False})
JSON = "application/json"

HEAD: Any = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-length", b"%d" % len(ANSWER)), (b"content-type", JSON.encode())],
}
BODY: Any = {"type": "http.response.body", "body": ANSWER}


async def raw(scope: Scope, receive: Receive, send: Send) -> None:
    """The least an ASGI application can do."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send(HEAD)
    await send(BODY)


async def _nothing(request: Request) -> Response:
    return Response(ANSWER, media_type=JSON)


noop = Starlette(
    routes=[
        Route(BASE + "/heartbeat/{taskId}", _nothing, methods=["PUT"]),
        Route(BASE, _nothing, methods=["POST"]),
        Route(BASE + "/by-task/{taskId}", _nothing, methods=["DELETE"]),
        Route(BASE + "/provider-session/{taskId}", _nothing, methods=["PUT"]),
    ]
)
"""The floor: the hot routes on Starlette as it comes, without store, keys or checks."""


@asynccontextmanager
async def _with_scripts(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    scripts = Scripts(Settings.load())
    try:
        yield {"scripts": scripts}
    finally:
        await scripts.close()


async def _evalsha(request: Request) -> Response:
    scripts: Scripts = request.state.scripts
    operation = ("task", request.path_params["taskId"], "", "")
    ((status, due, stop),) = await scripts.run("heartbeat", scripts.shards[0], len(operation), *operation)
    updated = status == b"renewed"
    answer = {"updated": updated, "expiresAt": timestamp(int(due)), "stopRequested": stop != b""}
    return Response(to_json(answer), media_type=JSON)


plain = Starlette(
    routes=[Route(BASE + "/heartbeat/{taskId}", _evalsha, methods=["PUT"])],
    lifespan=_with_scripts,
)
"""The tracker's heartbeat script and client, called once per request: what coalescing is measured against."""
