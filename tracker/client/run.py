"""What a run shows and takes, whether a thread or a task keeps it alive."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Protocol

from tracker.client.lease import Lease, Lost
from tracker.models import Session

__all__ = ["LONGEST_SILENCE_SECONDS", "BaseRun"]

LONGEST_SILENCE_SECONDS = 86_400.0
"""The longest TTL there is: nobody may be silent for longer."""


class Beating(Protocol):
    """What keeps runs alive: a `Beater` or an `AsyncBeater`."""

    @property
    def lock(self) -> AbstractContextManager[object]: ...

    def wake(self) -> None: ...


class BaseRun:
    """One run of a task, while it is worked on. None of these wait for the server."""

    def __init__(self, lease: Lease, patience: float, beating: Beating) -> None:
        self._lease = lease
        self._patience = patience
        self._beating = beating

    @property
    def session(self) -> Session | None:
        """The session as it was when it was registered; None while it is not."""
        return self._lease.session

    @property
    def session_id(self) -> str | None:
        """The id of its session; None while it is not registered."""
        return self._lease.session_id

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked the run to stop; learned with each heartbeat."""
        return self._lease.stop_requested

    @property
    def lost(self) -> Lost | None:
        """Why it has no session any more; None while it has one, or still tries to get one."""
        return self._lease.lost

    def progress(self, text: str) -> None:
        """Tell people how far the run is. Cut to 512 characters; told faster than once a second, the latest counts."""
        with self._beating.lock:
            self._lease.set_progress(text, time.monotonic())
        self._beating.wake()

    def touch(self) -> None:
        """Tell that the work gets on, with nothing to say: `max_silence` counts from here."""
        with self._beating.lock:
            self._lease.touch(time.monotonic())
        self._beating.wake()
