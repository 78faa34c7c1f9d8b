"""Between hash and wire: nothing is lost, and times read as RFC 3339."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from tests.store.wire import a_run
from tracker.models import Session
from tracker.store.snapshot import FIELDS, Values, decode, encode, escape, quoting, seconds, timestamp, write

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


def a_row(**fields: bytes) -> Values:
    known = {"agent": b"a", "trigger": b"t", "started": b"1", "due": b"1501", "ttl": b"1500", **fields}
    return [known.get(field) for field in FIELDS]


@given(st.lists(st.binary(max_size=8) | TEXTS.map(str.encode), max_size=5))
def test_whatever_stands_in_a_chunk_of_hashes_is_written_as_if_escaped_one_by_one(texts: list[bytes]) -> None:
    """What needs escaping in one of them must not slip through beside many that do not."""
    names = ("agent", "task", "about", "progress")
    rows = [a_row(), *(a_row(**{names[number % len(names)]: text}) for number, text in enumerate(texts))]
    quote = quoting(rows)
    assert [write(SOME_ID, row, quote) for row in rows] == [write(SOME_ID, row) for row in rows]
    for row in rows:
        assert list(from_json(write(SOME_ID, row, quote))) == list(Session.__annotations__)


@pytest.mark.parametrize("text", [b'"', b"\\", b"\n", b"\x00", b"\x1f", b"\xff", "\u00e9".encode()[:1]])
@pytest.mark.parametrize("field", sorted(set(FIELDS) - {"started", "due", "ttl", "stop", "meta"}))
def test_one_text_that_needs_more_than_quotes_is_noticed_in_any_field(field: str, text: bytes) -> None:
    assert quoting([a_row()] * 3 + [a_row(**{field: b"a" + text})]) is escape


def test_texts_that_need_no_more_than_quotes_get_no_more() -> None:
    plain = quoting([a_row(about="\u00e9\u2028\U0001f984 /<>'&".encode(), meta=b'{"k":"\\""}', progress=b"")])
    assert plain is not escape
    assert plain(b"x") == b'"x"'


def test_halves_of_a_character_in_two_texts_make_no_whole_one() -> None:
    assert quoting([a_row(task=b"\xc3", trigger=b"\xa9")]) is escape
