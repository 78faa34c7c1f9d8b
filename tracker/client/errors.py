"""What a call can end with, as a tree.

::

    TrackerClientError
    ├── Misconfigured            the URL, the key or the environment cannot be used; nothing was sent
    ├── Refused                  the tracker said no, for a reason that repeating does not heal
    │   ├── Invalid              400: the request breaks a rule of the contract
    │   ├── Unauthorized         401: the key is missing or unknown
    │   ├── Forbidden            403: the key may only read
    │   ├── NotFound             404: there is no such session
    │   ├── Conflict             409: another session is the task's live one
    │   ├── PositionLost         410: the feed no longer holds that position
    │   ├── TooLarge             413: the body has more bytes than the server takes
    │   └── IdempotencyMismatch  422: the Idempotency-Key came with another body before
    ├── Unavailable              no answer in time, no connection, or 503: trying again helps
    ├── ServerFault              500: a person must look at the server
    └── UnexpectedAnswer         something answered, but not as a tracker does

The message of each is one sentence for people. Statuses become errors by `REFUSALS`, httpx's errors by `FAILURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import httpx

from tracker.errors import TrackerError
from tracker.models import FieldError, Session

__all__ = [
    "Conflict",
    "Forbidden",
    "IdempotencyMismatch",
    "Invalid",
    "Misconfigured",
    "NotFound",
    "PositionLost",
    "Refused",
    "ServerFault",
    "TooLarge",
    "TrackerClientError",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
]


class TrackerClientError(TrackerError):
    """The root: every error that a client raises on purpose."""


class Misconfigured(TrackerClientError):
    """The URL, the key, or what the environment says of proxies or certificates cannot be used. Nothing was sent."""


class Refused(TrackerClientError):
    """The tracker said no. Nothing changed."""


class Invalid(Refused):
    """The request breaks a rule of the contract; ``details`` has a field and a message for each breach."""

    def __init__(self, message: str, details: list[FieldError]) -> None:
        self.details = details
        super().__init__(message)


class Unauthorized(Refused):
    """The key is missing or unknown."""


class Forbidden(Refused):
    """The key may read, but not write."""


class NotFound(Refused):
    """There is no such session."""


class Conflict(Refused):
    """Another session, ``session``, is the live one of the task."""

    def __init__(self, message: str, session: Session) -> None:
        self.session = session
        super().__init__(message)


class PositionLost(Refused):
    """The feed no longer holds the event to go on behind: list the sessions anew, then go on behind ``onward``."""

    def __init__(self, message: str, onward: str = "0") -> None:
        self.onward = onward
        super().__init__(message)


class TooLarge(Refused):
    """The body has more bytes than the server takes."""


class IdempotencyMismatch(Refused):
    """The same Idempotency-Key was used with another body within 24 hours."""


class Unavailable(TrackerClientError):
    """No answer that counts. Unless ``sent`` is false, the call may have been done all the same.

    ``retry_after``: seconds that the server asked to wait, None when it did not.
    """

    def __init__(self, message: str, *, sent: bool = True, retry_after: float | None = None) -> None:
        self.sent = sent
        self.retry_after = retry_after
        super().__init__(message)


class ServerFault(TrackerClientError):
    """The server failed in a way that time does not heal. The call may have been done."""


class UnexpectedAnswer(TrackerClientError):
    """Something answered, but not as a tracker does: another server, a proxy's page, a redirect."""


REFUSALS: Mapping[int, type[Refused]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: PositionLost,
    413: TooLarge,
    422: IdempotencyMismatch,
}
"""What the tracker says no with."""

PASSING = frozenset({429, 502, 503, 504})
"""What a tracker, or a proxy before it, says when it cannot answer now."""


def _unsent(message: str) -> TrackerClientError:
    return Unavailable(f"Cannot reach the tracker: {message}", sent=False)


def _unanswered(message: str) -> TrackerClientError:
    return Unavailable(f"No answer from the tracker: {message}")


def _unconnectable(message: str) -> TrackerClientError:
    return Misconfigured(f"The tracker cannot be reached as things are set: {message}")


def _unsendable(message: str) -> TrackerClientError:
    return Invalid(f"The call cannot be sent: {message}", [])


FAILURES: Mapping[type[Exception], Callable[[str], TrackerClientError]] = {
    httpx.ConnectError: _unsent,
    httpx.ConnectTimeout: _unsent,
    httpx.PoolTimeout: _unsent,
    httpx.ReadTimeout: _unanswered,
    httpx.WriteTimeout: _unanswered,
    httpx.ReadError: _unanswered,
    httpx.WriteError: _unanswered,
    httpx.CloseError: _unanswered,
    httpx.RemoteProtocolError: _unanswered,
    httpx.ProxyError: _unanswered,
    httpx.LocalProtocolError: Misconfigured,
    httpx.UnsupportedProtocol: Misconfigured,
    httpx.DecodingError: UnexpectedAnswer,
    httpx.TooManyRedirects: UnexpectedAnswer,
    httpx.InvalidURL: _unsendable,  # the address is good: it is too long with what the call adds
    UnicodeError: _unconnectable,  # a proxy's name that is none
    OverflowError: _unconnectable,  # a timeout that no clock holds
}
"""What httpx raises, or lets through, kind by kind; a test holds it to be complete."""


@contextmanager
def translated(http: httpx.Client | httpx.AsyncClient) -> Iterator[None]:
    """Raises ours for what httpx raises from when a request is made until its answer is read."""
    try:
        yield
    except (httpx.RequestError, httpx.InvalidURL, UnicodeError, OverflowError) as error:
        raise failure_of(error) from error
    except RuntimeError as error:
        if not http.is_closed:
            raise
        raise TrackerClientError("The client was closed") from error


def failure_of(error: Exception) -> TrackerClientError:
    """Ours for what httpx raised."""
    kind = next((kind for kind in type(error).__mro__ if kind in FAILURES), None)
    message = str(error) or type(error).__name__
    return FAILURES[kind](message) if kind else UnexpectedAnswer(message)


def refusal_of(status: int, headers: Mapping[str, str], body: Any) -> TrackerClientError:
    """Ours for an answer that is not the one asked for; ``body`` is what its JSON means, None for what is none."""
    said = body.get("error") if isinstance(body, dict) else None
    if status in PASSING:
        reason = said if isinstance(said, str) else f"status {status}"
        return Unavailable(f"The tracker cannot answer now: {reason}", retry_after=_seconds(headers.get("retry-after")))
    if status >= 500:
        return ServerFault(f"The tracker failed: {said}" if isinstance(said, str) else f"The tracker failed: {status}")
    kind = REFUSALS.get(status)
    if kind is None or not isinstance(said, str):
        return UnexpectedAnswer(f"No answer of a tracker: status {status}")
    if kind is Invalid:
        return Invalid(said, body.get("details") or [])
    if kind is Conflict:
        session = body.get("session")
        if not isinstance(session, dict):
            return UnexpectedAnswer(f"No answer of a tracker: a conflict with no session: {said}")
        return Conflict(said, cast("Session", session))
    return kind(said)


def _seconds(text: str | None) -> float | None:
    """A Retry-After in seconds. As a date it is not heeded: clocks differ, and backoff does as well."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
