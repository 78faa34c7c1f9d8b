"""AccessLog: one line per request, with its route template, never its path; cheap enough to be on.

Lines are gathered and go to the logging module together, as one record that stands for many: the tracker's formatters
(tracker/cli/logs.py) make a line of each. One record per request would cost three times as much.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Literal, NamedTuple

__all__ = ["AccessLog", "Line"]

DELAY_SECONDS = 0.1
"""How late a line may come."""
GATHERED = 1000
"""How many lines may wait; then they are written at once."""
QUIET = frozenset({"/health", "/ready", "/metrics"})
"""Probes and scrapes: when they go well, only those who debug want to know."""

logger = logging.getLogger("tracker.access")


class Line(NamedTuple):
    """``created`` in seconds since 1970, ``level`` of the logging module, ``seconds`` until all was sent."""

    created: float
    level: int
    method: str
    route: str
    status: int
    seconds: float
    request_id: str

    @property
    def message(self) -> str:
        return f"{self.method} {self.route} {self.status} {self.seconds * 1000:.1f} ms {self.request_id}"

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "durationMs": round(self.seconds * 1000, 3),
            "requestId": self.request_id,
        }


class AccessLog:
    """``which``: all requests, those answered with an error (400 and above), or none.

    Requests with a status below ``least`` are not to be added. One that was never answered has 0.
    """

    def __init__(self, which: Literal["all", "errors", "off"]) -> None:
        self.least = {"all": 0, "errors": 400, "off": 1000}[which]
        self._waiting: list[tuple[float, int, str, str, int, float, str]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, method: str, route: str, status: int, seconds: float, request_id: str) -> None:
        level = logging.DEBUG if route in QUIET and status < 400 else logging.INFO
        if not logger.isEnabledFor(level):
            return
        self._waiting.append((time.time(), level, method, route, status, seconds, request_id))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_SECONDS, self.flush)
        elif len(self._waiting) >= GATHERED:
            self.flush()

    def flush(self) -> None:
        """Writes what has been gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        if waiting:
            level = max(entry[1] for entry in waiting)
            lines = [Line._make(entry) for entry in waiting]
            logger.log(level, "%d requests", len(lines), extra={"lines": lines})
