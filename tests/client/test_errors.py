"""The error tree: drawn, exported, and complete for every status of the API and every error of httpx."""

from __future__ import annotations

import re

import httpx
import pytest

import tracker.client
from tests.client.conftest import OpenClient
from tracker.api.openapi import describe
from tracker.api.responses import ERRORS
from tracker.api.routes import OPERATIONS
from tracker.client import Retries, errors
from tracker.client.errors import (
    FAILURES,
    REFUSALS,
    Invalid,
    Misconfigured,
    ServerFault,
    TrackerClientError,
    Unavailable,
    UnexpectedAnswer,
    failure_of,
    refusal_of,
)

PUBLIC = {
    "AsyncRun",
    "AsyncTrackerClient",
    "Filters",
    "Lost",
    "NewSession",
    "Retries",
    "Run",
    "TrackerClient",
}


def every(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*(every(below) for below in kind.__subclasses__()))


def test_the_docstring_draws_the_tree() -> None:
    drawn = re.findall(r"^ {4}[│ ]*(?:[├└]── )?(\w+)", errors.__doc__ or "", re.MULTILINE)
    assert set(drawn) == {kind.__name__ for kind in every(TrackerClientError)}
    assert len(drawn) == len(set(drawn))


def test_all_errors_are_exported_and_nothing_else_is_but_what_is_known() -> None:
    tree = {kind.__name__ for kind in every(TrackerClientError)}
    assert set(errors.__all__) == tree
    assert set(tracker.client.__all__) == PUBLIC | tree
    assert all(hasattr(tracker.client, name) for name in tracker.client.__all__)


def test_every_status_that_the_api_documents_has_its_error() -> None:
    """But 405, which no call of the client can meet."""
    documented = {
        int(status)
        for path in describe(OPERATIONS)["paths"].values()
        for operation in path.values()
        if isinstance(operation, dict)
        for status in operation.get("responses", {})
        if status.isdigit() and 400 <= int(status) < 500
    }
    assert documented - {405} <= REFUSALS.keys()
    assert ERRORS, "the server's own table"


def test_every_error_of_httpx_is_one_of_ours() -> None:
    abstract = {httpx.RequestError, httpx.TransportError, httpx.TimeoutException, httpx.NetworkError}
    abstract.add(httpx.ProtocolError)
    for kind in every(httpx.RequestError) - abstract:
        assert kind in FAILURES, kind
    for raised in FAILURES:
        assert isinstance(failure_of(raised("reason")), TrackerClientError)
        assert str(failure_of(raised(""))), "never without a word"


async def test_a_client_that_was_closed_says_so(open_client: OpenClient) -> None:
    driver = open_client("http://127.0.0.1:9")
    await driver.close()
    for calling in (driver.call("stats"), driver.events(1)):
        with pytest.raises(TrackerClientError, match="was closed"):
            await calling


async def test_a_call_that_no_url_can_hold_is_invalid(open_client: OpenClient) -> None:
    with pytest.raises(Invalid):
        await open_client("http://127.0.0.1:9").call("read_session", "x" * 70_000)


async def test_a_proxy_whose_name_is_none_is_no_surprise(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either library that connects may look it up, and say in its own way that it is none."""
    monkeypatch.setenv("HTTP_PROXY", "http://a..b")
    with pytest.raises((Misconfigured, Unavailable)):
        await open_client("http://127.0.0.1:9", retries=Retries(1, 0.1)).call("stats")


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout])
def test_what_was_never_sent_is_known(kind: type[httpx.TransportError]) -> None:
    failure = failure_of(kind("reason"))
    assert isinstance(failure, Unavailable)
    assert not failure.sent


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": "e", "details": []}, Invalid),
        (404, None, UnexpectedAnswer),
        (404, ["error"], UnexpectedAnswer),
        (409, {"error": "e"}, UnexpectedAnswer),
        (302, {"error": "e"}, UnexpectedAnswer),
        (204, None, UnexpectedAnswer),
        (500, {"error": "e"}, ServerFault),
        (500, None, ServerFault),
        (502, None, Unavailable),
        (503, {"error": "e"}, Unavailable),
        (504, None, Unavailable),
        (429, None, Unavailable),
    ],
)
def test_an_answer_becomes_the_error_that_it_stands_for(
    status: int, body: object, kind: type[TrackerClientError]
) -> None:
    assert type(refusal_of(status, {}, body)) is kind


@pytest.mark.parametrize(
    ("text", "seconds"), [("2", 2), ("0", 0), ("", None), ("-1", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)]
)
def test_retry_after_is_taken_in_seconds(text: str, seconds: float | None) -> None:
    error = refusal_of(503, {"retry-after": text}, None)
    assert isinstance(error, Unavailable)
    assert error.retry_after == seconds
