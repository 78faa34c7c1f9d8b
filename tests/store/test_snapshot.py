"""Between hash and wire: nothing is lost, and times read as RFC 3339."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.wire import a_run
from tracker.models import Session
from tracker.store.snapshot import decode, encode, seconds, timestamp

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
SOME_ID = b"0199b1f2-6c1e-7003-9a55-0c3f3f8f2a10"


def as_redis(flat: list[str | bytes]) -> list[bytes]:
    return [part.encode() if isinstance(part, str) else part for part in flat]


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (1000, "1970-01-01T00:00:01.000Z"),
        (1_795_473_222_695, "2026-11-23T22:33:42.695Z"),
        (1_709_164_800_007, "2024-02-29T00:00:00.007Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_a_time_reads_as_rfc_3339_in_utc_with_milliseconds(ms: int, text: str) -> None:
    assert timestamp(ms) == text


@given(st.integers(0, 4_102_444_800_000))
def test_every_time_parses_back_to_itself(ms: int) -> None:
    parsed = datetime.fromisoformat(timestamp(ms))
    assert parsed.tzinfo == UTC
    assert round(parsed.timestamp() * 1000) == ms


@pytest.mark.parametrize(("ms", "expected"), [(1000, "1"), (1_800_000, "1800"), (1500, "1.5"), (1, "0.001"), (0, "0")])
def test_whole_seconds_have_no_fraction(ms: int, expected: str) -> None:
    assert repr(seconds(ms)) == expected


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "inboxMessageId": TEXTS,
            "taskDescription": st.just("") | TEXTS,
            "runnerSessionId": TEXTS,
            "runtimeInstanceId": TEXTS,
            "metadata": st.dictionaries(TEXTS, st.just("") | TEXTS, max_size=5),
        },
    )
)
def test_what_a_create_brings_is_what_the_session_shows(fields: dict[str, Any]) -> None:
    times: list[str | bytes] = ["started", "1000", "due", "3000", "ttl", "2000", "agent", "a", "trigger", "t"]
    session = decode(SOME_ID, as_redis(times + encode(a_run(**fields))))
    expected = {"inboxMessageId": None, "taskDescription": None, "runnerSessionId": None, "runtimeInstanceId": None}
    assert session == {
        **session,
        **expected,
        "metadata": {},
        **fields,
        "startedAt": "1970-01-01T00:00:01.000Z",
        "lastHeartbeatAt": "1970-01-01T00:00:01.000Z",
        "expiresAt": "1970-01-01T00:00:03.000Z",
        "ttlSeconds": 2,
    }


def test_fields_come_in_the_order_of_the_contract_whatever_the_order_in_the_store() -> None:
    flat = as_redis(
        ["stop", "5000", "ttl", "1", "unknown", "x", "agent", "a", "due", "2", "started", "1", "trigger", "t"]
    )
    session = decode(SOME_ID, flat)
    assert list(session) == list(Session.__annotations__)
    assert session["stopRequestedAt"] == "1970-01-01T00:00:05.000Z"


def test_a_session_of_which_only_id_and_start_are_left_reads_as_empty() -> None:
    session = decode(SOME_ID, [b"started", b"1000"])
    assert session["id"] == SOME_ID.decode()
    assert (session["agentId"], session["triggerType"], session["taskId"]) == ("", "", None)
    assert session["startedAt"] == session["lastHeartbeatAt"] == session["expiresAt"]
