"""The Python client, sync and async: every call of the API, runs that are kept alive, the change feed.

::

    with TrackerClient("http://localhost:3013", api_key="...") as client:
        with client.track(agent_id="a", task_id="t", trigger_type="manual", ttl_seconds=60) as run:
            run.set_provider_session("p-123")
            run.progress("running tests, 3 of 7")
"""

from tracker.client.asynchronous import AsyncRun, AsyncTrackerClient
from tracker.client.calls import Filters, NewSession
from tracker.client.errors import (
    Conflict,
    Forbidden,
    IdempotencyMismatch,
    Invalid,
    Misconfigured,
    NotFound,
    PositionLost,
    Refused,
    ServerFault,
    TooLarge,
    TrackerClientError,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
)
from tracker.client.lease import Lost
from tracker.client.retries import Retries
from tracker.client.sync import Run, TrackerClient

__all__ = [
    "AsyncRun",
    "AsyncTrackerClient",
    "Conflict",
    "Filters",
    "Forbidden",
    "IdempotencyMismatch",
    "Invalid",
    "Lost",
    "Misconfigured",
    "NewSession",
    "NotFound",
    "PositionLost",
    "Refused",
    "Retries",
    "Run",
    "ServerFault",
    "TooLarge",
    "TrackerClient",
    "TrackerClientError",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
]
