"""Watch: the middleware around everything, which counts, logs and names each request."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable
from itertools import count
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tracker.api.access import AccessLog
from tracker.api.drain import Drain
from tracker.api.metrics import METHODS, NO_ROUTE, Metrics

__all__ = ["REQUEST_ID", "Watch"]

REQUEST_ID = "tracker.request_id"
"""Where the request's id is in its scope."""
HEADER = b"x-request-id"
CLOSE = (b"connection", b"close")
SANE = re.compile(rb"[\x21-\x7e]{1,128}")
"""An id that is taken over from the caller: visible ASCII."""


class Watch:
    """ASGI middleware. Takes ``X-Request-ID`` over or makes one, and sends it back with every answer.

    In a drain every answer closes its connection.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: AccessLog, drain: Drain) -> None:
        self.app = app
        self._metrics = metrics
        self._log = log
        self._drain = drain
        # Random per process and counted on: unique, and a tenth of the cost of a UUID.
        self._prefix = os.urandom(8).hex()
        self._numbers = count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin, status = perf_counter(), 0
        request_id = scope[REQUEST_ID] = self._identify(scope)

        def noted(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, request_id.encode())]
                if self._drain.closing:
                    message["headers"].append(CLOSE)
                self._metrics.answered(scope["method"], scope.get("route", NO_ROUTE), status, perf_counter() - begin)
            return send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            if status >= self._log.least:
                method = scope["method"] if scope["method"] in METHODS else "other"
                self._log.add(method, scope.get("route", NO_ROUTE), status, perf_counter() - begin, request_id)

    def _identify(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == HEADER:
                if SANE.fullmatch(value):
                    text: str = value.decode()
                    return text
                break
        return f"{self._prefix}{next(self._numbers):08x}"
