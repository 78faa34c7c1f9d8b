"""Requests as they are built: any text arrives as it is, and what would mean something else is never sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from tracker.client import Invalid, UnexpectedAnswer, calls
from tracker.client.calls import BASE, LITERALS, Call

HOSTILE = [
    "/",
    ".",
    "..",
    "...",
    "a/../b",
    "%2F",
    "%",
    " ",
    "\0",
    "🦄",
    "?a=b",
    "#a",
    ";",
    "+",
    "\r\n",
    "é",
    *sorted(LITERALS),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_stays_one_segment_that_the_library_leaves_alone(text: str) -> None:
    path = calls.read_session(text).path
    sent = httpx.Request("GET", "http://tracker" + path).url.raw_path.decode()
    segments = sent.removeprefix(BASE + "/").split("/")
    assert len(segments) == 1
    assert unquote(segments[0]) == text
    assert segments[0] not in LITERALS


@pytest.mark.parametrize(
    "make",
    [
        lambda: calls.read_session(""),
        lambda: calls.delete_by_task(""),
        lambda: calls.delete_by_task("t", session_id=""),
        lambda: calls.list_sessions(agent_id=""),
        lambda: calls.read_by_task("\ud800"),
        lambda: calls.list_sessions(agent_id="\ud800"),
        lambda: calls.create_session(agent_id="a", trigger_type="t", idempotency_key="a\r\nHost: b"),
        lambda: calls.create_session(agent_id="a", trigger_type="t", idempotency_key=" "),
    ],
)
def test_what_would_mean_something_else_is_never_sent(make: Callable[[], Call[Any]]) -> None:
    with pytest.raises(Invalid) as refused:
        make()
    assert refused.value.details[0]["field"] in str(refused.value)


def test_names_on_the_wire_are_those_of_the_contract_and_none_is_absent() -> None:
    call = calls.create_session(agent_id="a", trigger_type="t", ttl_seconds=2.5, runner_session_id=None, metadata={})
    assert json.loads(call.body or b"") == {"agentId": "a", "triggerType": "t", "ttlSeconds": 2.5, "metadata": {}}


def test_every_create_has_a_key_of_its_own_unless_it_is_given_one() -> None:
    keys = [calls.create_session(agent_id="a", trigger_type="t").headers["Idempotency-Key"] for _ in range(2)]
    assert keys[0] != keys[1]
    given = calls.create_session(agent_id="a", trigger_type="t", idempotency_key="mine")
    assert given.headers["Idempotency-Key"] == "mine"


def test_only_calls_that_may_be_done_twice_are_repeatable() -> None:
    assert not calls.cleanup(agent_id="a").repeatable
    assert not calls.delete_by_task("t").repeatable, "the repetition might end a successor"
    assert calls.delete_by_task("t", session_id="s").repeatable
    assert calls.delete_session("s").repeatable
    assert calls.create_session(agent_id="a", trigger_type="t").repeatable


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"{}", b'{"updated": 1}', b'{"updated": null}'])
def test_an_answer_without_what_was_asked_for_is_no_answer(content: bytes) -> None:
    with pytest.raises(UnexpectedAnswer):
        calls.request_stop("s").outcome(200, {}, content)
