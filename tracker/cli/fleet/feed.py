"""The feed of ended sessions, followed page by page."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any, Literal

from tracker.cli.fleet.calls import Calls, Kind

ENDED = "session.ended"
PAGE = 1000
SHORT_PAGES = 20  # in a row, then the rest can wait for the next read: a busy feed may have no end


class Feed:
    """Follows `session.ended` events. `state` is "none" where a tracker has no feed, "lost" after a 410."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._next: str | None = None
        self.state: Literal["followed", "none", "lost"] = "followed"
        # Event loop time up to which every event has been read for certain.
        self.read_until = -math.inf

    @property
    def followed(self) -> bool:
        return self.state == "followed"

    async def read(self) -> AsyncIterator[dict[str, Any]]:
        """The events since the last read, to the end of the feed as far as it can be told."""
        short = 0
        while self.followed and short < SHORT_PAGES:
            params = {"limit": str(PAGE), "type": ENDED} | ({"after": self._next} if self._next else {})
            answer = await self._calls.send(Kind.EVENTS, "GET", "/events", params=params)
            if answer.status in {"404", "405", "410"}:
                self.state = "lost" if answer.status == "410" else "none"
                self._calls.excuse(Kind.EVENTS, answer.status)
            if not answer.ok:
                return
            for event in answer.value:
                if isinstance(event, dict) and isinstance(event.get("session"), dict) and event.get("type") == ENDED:
                    yield event
            stays = answer.body.get("next") in {None, self._next}
            self._next = answer.body.get("next") or self._next
            if stays and not answer.value:
                self.read_until = answer.sent
                return
            short = 0 if len(answer.value) >= PAGE else short + 1

    async def skip(self) -> None:
        """Go to the end: what ended before the simulation is none of its business."""
        async for _ in self.read():
            pass
