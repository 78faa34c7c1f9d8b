"""What can go wrong, as a tree that every room shares.

::

    TrackerError
    ├── Invalid              the request breaks a rule of the contract
    ├── Conflict             another session is the task's live one
    ├── IdempotencyMismatch  the Idempotency-Key came with another body before
    ├── PositionLost         the feed no longer holds that position
    ├── TooManyReaders       this process serves as many readers of the feed as it may
    └── StoreError
        ├── StoreUnavailable the store did not answer in time, or may not answer now; trying again helps
        ├── StoreFault       the store holds what the tracker did not write; a person must look
        ├── SchemaMismatch   the store was laid out for another shard count or schema version
        └── CannotReshard    the store cannot get that number of shards, or not while pods are up

The message of each is one sentence for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracker.models import FieldError, Session

__all__ = [
    "CannotReshard",
    "Conflict",
    "IdempotencyMismatch",
    "Invalid",
    "PositionLost",
    "SchemaMismatch",
    "StoreError",
    "StoreFault",
    "StoreUnavailable",
    "TooManyReaders",
    "TrackerError",
]


class TrackerError(Exception):
    """The root: every error that the tracker raises on purpose."""


class Invalid(TrackerError):
    """The request breaks a rule of the contract; ``details`` has a field and a message for each breach."""

    def __init__(self, details: list[FieldError]) -> None:
        self.details = details
        super().__init__("Validation error: " + "; ".join(f"{d['field']}: {d['message']}" for d in details))


class Conflict(TrackerError):
    """The task's live session, ``session``, is not the one that the caller means."""

    def __init__(self, message: str, session: Session) -> None:
        self.session = session
        super().__init__(message)


class IdempotencyMismatch(TrackerError):
    """The same Idempotency-Key was used with another body within 24 hours."""


class PositionLost(TrackerError):
    """The feed does not hold the event after which to go on: it was trimmed away, or never was.

    ``onward`` is the position to go on from: in shards that lost it, that of their oldest event.
    """

    def __init__(self, message: str, onward: str = "0") -> None:
        self.onward = onward
        super().__init__(message)


class TooManyReaders(TrackerError):
    """No further reader of the feed can be served here now. Worth a retry, maybe on another pod."""


class StoreError(TrackerError):
    """Something about the store, not about the request."""


class StoreUnavailable(StoreError):
    """The store could not do it now: unreachable, too slow, loading, read-only, out of memory. Worth a retry."""


class StoreFault(StoreError):
    """The store refused for a reason that time does not heal, such as a key of the wrong type."""


class SchemaMismatch(StoreError):
    """The store is recorded with another shard count or schema version than this process has."""


class CannotReshard(StoreError):
    """The store cannot get that number of shards, or not now: somebody must do something else first."""
