"""What a request may hold: bodies, their fields and limits, query strings, the Idempotency-Key header."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.api.conftest import BASE, Api, Json, listening
from tests.clockwork import advance
from tracker.settings import Settings

EMOJI = "\N{ROBOT FACE}"
REQUIRED: Json = {"agentId": "a", "triggerType": "t"}
IDS = ["agentId", "triggerType", "taskId", "inboxMessageId", "runnerSessionId", "runtimeInstanceId"]

NOT_TEXT: list[Any] = [5, 5.5, True, False, [], ["x"], {}, {"x": "y"}]
ROUTES: dict[str, tuple[str, str, Json]] = {
    "create": ("POST", "", REQUIRED),
    "heartbeat": ("PUT", "/heartbeat/t1", {}),
    "heartbeat by id": ("PUT", "/x/heartbeat", {}),
    "heartbeats": ("PUT", "/heartbeat", {}),
    "provider": ("PUT", "/provider-session/t1", {"providerSessionId": "p"}),
    "cleanup": ("POST", "/cleanup", {}),
}
WRONG: dict[str, dict[str, list[Any]]] = {
    "create": {
        **{field: ["", *NOT_TEXT, "x" * 513, EMOJI * 513] for field in IDS},
        "taskDescription": [*NOT_TEXT, "x" * 16385],
        "ttlSeconds": ["60", True, False, [], {}, 0, -1, 0.999, 86400.001, 86401, 1e300, 10**30],
        "metadata": [
            "x",
            5,
            True,
            [],
            [["a", "b"]],
            {f"k{number}": "v" for number in range(33)},
            *({"k": value} for value in (*NOT_TEXT, None, "x" * 513)),
            {"": "v"},
            {"k" * 65: "v"},
        ],
        "onConflict": ["", "Replace", "replace ", "ignore", *NOT_TEXT],
    },
    "heartbeat": {"sessionId": ["", "x" * 513, *NOT_TEXT], "progress": ["x" * 513, *NOT_TEXT]},
    "heartbeat by id": {"sessionId": ["", "x" * 513, *NOT_TEXT], "progress": ["x" * 513, *NOT_TEXT]},
    "heartbeats": {
        field: ["x", 5, True, {}, {"x": "y"}, [5], [None], [True], [["x"]], [""], ["x" * 513], ["t"] * 1001]
        for field in ("taskIds", "sessionIds")
    },
    "provider": {field: ["", "x" * 513, *NOT_TEXT] for field in ("providerSessionId", "sessionId")},
    "cleanup": {
        "agentId": ["", "x" * 513, *NOT_TEXT],
        "runtimeInstanceId": ["", "x" * 513, *NOT_TEXT],
        "maxAgeMinutes": ["5", 0.5, True, False, [], {}, -1],
    },
}


@pytest.mark.parametrize(("route", "field"), [(route, field) for route in WRONG for field in WRONG[route]])
async def test_wrong_values_are_refused_not_coerced(api: Api, route: str, field: str) -> None:
    """Each refusal is a 400 that names the field, and changes nothing."""
    session = await api.create(taskId="t1")
    method, path, body = ROUTES[route]
    for value in WRONG[route][field]:
        refused = await api.call(method, path, json={**body, field: value})
        assert refused.status_code == 400, value
        answer = refused.json()
        assert list(answer) == ["error", "details"]
        assert answer["error"].startswith(f"Validation error: {field}"), value
        assert answer["details"], value
        for detail in answer["details"]:
            assert list(detail) == ["field", "message"]
            assert detail["field"].split(".")[0] == field
            assert detail["message"]
    assert (await api.get()).json() == {"sessions": [session]}
    assert len(await api.events()) == 1


async def test_all_breaches_are_named_at_once(api: Api) -> None:
    refused = await api.post(json={"agentId": 5, "ttlSeconds": "60"})
    assert refused.status_code == 400
    assert refused.json() == {
        "error": "Validation error: agentId: Input should be a valid string; triggerType: Field required; "
        "ttlSeconds: Input should be a valid number",
        "details": [
            {"field": "agentId", "message": "Input should be a valid string"},
            {"field": "triggerType", "message": "Field required"},
            {"field": "ttlSeconds", "message": "Input should be a valid number"},
        ],
    }


async def test_a_null_in_a_field_is_no_missing_field(api: Api) -> None:
    refused = await api.post(json={"agentId": "a", "triggerType": "t", "metadata": {"a": None}})
    assert refused.json()["details"] == [{"field": "metadata.a", "message": "Input should be a valid string"}]
    refused = await api.put("/heartbeat", json={"taskIds": [None]})
    assert refused.json()["details"] == [{"field": "taskIds.0", "message": "Input should be a valid string"}]


async def test_an_answer_stays_short_however_much_is_wrong(api: Api) -> None:
    refused = await api.put("/heartbeat", json={"taskIds": [5] * 1000})
    assert refused.status_code == 400
    assert len(refused.content) < 4096
    refused = await api.post(json={**REQUIRED, "metadata": {"k" * 50_000: "v"}})
    assert refused.status_code == 400
    assert len(refused.content) < 1024


@pytest.mark.parametrize("field", IDS)
@pytest.mark.parametrize("value", ["x", EMOJI * 512, "\0", " ", "0", "null", "\N{RIGHT-TO-LEFT OVERRIDE}abc", "a\r\nb"])
async def test_ids_may_be_any_text_up_to_512_characters(api: Api, field: str, value: str) -> None:
    session = await api.create(**{field: value})
    assert session[field] == value
    assert (await api.get()).json() == {"sessions": [session]}


@pytest.mark.parametrize("value", ["", "x" * 16384, "a\0b\n\u2028", EMOJI])
async def test_a_description_may_have_16384_characters(api: Api, value: str) -> None:
    session = await api.create(taskDescription=value)
    assert session["taskDescription"] == value
    assert await api.find(session["id"]) == session


@pytest.mark.settings(max_body_bytes=100_000)
async def test_the_limits_count_characters_not_bytes(api: Api) -> None:
    session = await api.create(taskDescription=EMOJI * 16384)
    assert session["taskDescription"] == EMOJI * 16384


async def test_metadata_at_its_limits_is_kept_in_its_order(api: Api) -> None:
    metadata = {f"{number:02d}" + "\u00e9" * 62: EMOJI * 512 for number in reversed(range(24))}
    metadata |= {"empty": ""}
    metadata |= {f"k{number}": "\0" for number in range(32 - len(metadata))}
    assert len(metadata) == 32
    session = await api.create(metadata=metadata)
    assert session["metadata"] == metadata
    assert list(session["metadata"]) == list(metadata)
    assert await api.find(session["id"]) == session


@pytest.mark.parametrize(
    ("sent", "written"),
    [
        ("1", "1"),
        ("1.0", "1"),
        ("1e3", "1000"),
        ("86400", "86400"),
        ("86400.0", "86400"),
        ("1.5", "1.5"),
        ("59.999", "59.999"),
        ("1.0004", "1"),
        ("2.71828", "2.718"),
    ],
)
async def test_a_ttl_is_kept_to_the_millisecond(api: Api, sent: str, written: str) -> None:
    made = await api.post(content=f'{{"agentId": "a", "triggerType": "t", "ttlSeconds": {sent}}}')
    assert made.status_code == 201
    assert f'"ttlSeconds":{written},' in made.text


@pytest.mark.settings(ttl_seconds=60.5)
async def test_without_a_ttl_the_setting_counts(api: Api) -> None:
    session = await api.create(ttlSeconds=None)
    assert session["ttlSeconds"] == 60.5
    await advance(api.store, 50)
    assert await api.find(session["id"])
    await advance(api.store, 10.6)
    assert not await api.find(session["id"])


async def test_progress_may_have_512_characters_and_may_be_empty(api: Api) -> None:
    session = await api.create(taskId="t1")
    for progress in (EMOJI * 512, "", "=", "a\0b"):
        assert (await api.put("/heartbeat/t1", json={"progress": progress})).status_code == 200
        found = await api.find(session["id"])
        assert found is not None
        assert found["progress"] == progress


async def test_a_batch_takes_1000_targets_in_all(api: Api) -> None:
    """The limit counts both kinds together, and repeated ones as often as they are named."""
    fits = await api.put("/heartbeat", json={"taskIds": ["t"] * 400, "sessionIds": ["s"] * 600})
    assert fits.status_code == 200
    refused = await api.put("/heartbeat", json={"taskIds": ["t"] * 401, "sessionIds": ["s"] * 600})
    assert refused.status_code == 400
    assert "1000" in refused.json()["error"]


NULLS: dict[str, list[str]] = {
    "create": [*IDS[2:], "taskDescription", "ttlSeconds", "metadata", "onConflict"],
    "heartbeat": ["sessionId", "progress"],
    "heartbeats": ["taskIds", "sessionIds"],
    "provider": ["sessionId"],
    "cleanup": ["agentId", "maxAgeMinutes", "runtimeInstanceId"],
}


@pytest.mark.parametrize("route", NULLS)
async def test_null_means_absent(api: Api, route: str) -> None:
    method, path, body = ROUTES[route]
    without = await api.call(method, path, json=body)
    with_nulls = await api.call(method, path, json={**body, **dict.fromkeys(NULLS[route])})
    assert with_nulls.status_code == without.status_code
    if route == "create":
        listed = (await api.get()).json()["sessions"]
        times = ("id", "startedAt", "lastHeartbeatAt", "expiresAt")
        one, other = ({name: value for name, value in session.items() if name not in times} for session in listed)
        assert one == other
    else:
        assert with_nulls.json() == without.json()


@pytest.mark.parametrize("route", ROUTES)
async def test_unknown_fields_are_ignored(api: Api, route: str) -> None:
    """Also those named as a field is inside the server, or as a field that is not the client's to set."""
    method, path, body = ROUTES[route]
    unknown = {"x": 1, "agent_id": 5, "task_id": 5, "id": 5, "__proto__": {}, "startedAt": "1970", "stopRequestedAt": 1}
    answered = await api.call(method, path, json={**unknown, **body})
    assert answered.status_code in (200, 201)
    if route == "create":
        assert answered.json()["session"]["stopRequestedAt"] is None
        assert answered.json()["session"]["taskId"] is None


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "x", "a/b; q=\xff"]
)
async def test_a_body_is_read_as_json_whatever_its_content_type(api: Api, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type.encode("latin-1")}
    made = await api.post(content=json.dumps(REQUIRED).encode(), headers=headers)
    assert made.status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("POST", "/cleanup", {"cleaned": 0}),
        ("PUT", "/heartbeat", {"updated": 0, "missing": {"taskIds": [], "sessionIds": []}}),
        ("PUT", "/heartbeat/t9", {"updated": False}),
        ("PUT", "/x/heartbeat", {"updated": False}),
        ("PUT", "/x/stop", {"updated": False}),
    ],
)
async def test_an_empty_body_reads_as_no_fields(api: Api, method: str, path: str, answer: Json) -> None:
    for options in ({}, {"content": b""}, {"content": b"{}"}, {"content": b" \r\n\t{ } "}):
        answered = await api.call(method, path, **options)
        assert (answered.status_code, answered.json()) == (200, answer)


async def test_an_empty_body_of_a_create_lacks_what_is_required(api: Api) -> None:
    refused = await api.post()
    assert refused.status_code == 400
    assert [detail["field"] for detail in refused.json()["details"]] == ["agentId", "triggerType"]


def body_with(value: bytes) -> bytes:
    """A create that would be fine but for the value of a field that nobody reads."""
    return b'{"agentId": "a", "triggerType": "t", "x": %s}' % value


NO_JSON = {
    "nothing-but-space": b" ",
    "word": b"nonsense",
    "cut-off": b'{"agentId": "a", "triggerType": "t"',
    "two-values": b'{"agentId": "a", "triggerType": "t"} {}',
    "single-quotes": b"{'agentId': 'a', 'triggerType': 't'}",
    "trailing-comma": b'{"agentId": "a", "triggerType": "t",}',
    "comment": b'{"agentId": "a", "triggerType": "t"} // yes',
    "form": b"agentId=a&triggerType=t",
    "byte-order-mark": b'\xef\xbb\xbf{"agentId": "a", "triggerType": "t"}',
    "utf-16": '{"agentId": "a", "triggerType": "t"}'.encode("utf-16"),
    "latin-1": '{"agentId": "\u00e9", "triggerType": "t"}'.encode("latin-1"),
    "nul": b"\0",
    "raw-nul-in-text": body_with(b'"a\0b"'),
    "raw-newline-in-text": body_with(b'"a\nb"'),
    "bad-escape": body_with(rb'"\x41"'),
    "invalid-utf-8": body_with(b'"\xff"'),
    "invalid-utf-8-outside-text": body_with(b"\xff"),
    "overlong-utf-8": body_with(b'"\xc0\xaf"'),
    "utf-8-of-a-surrogate": body_with(b'"\xed\xa0\x80"'),
    "high-surrogate": body_with(rb'"\ud83e"'),
    "low-surrogate": body_with(rb'"\udd16"'),
    "surrogates-in-wrong-order": body_with(rb'"\udd16\ud83e"'),
    "surrogate-in-a-name": b'{"agentId": "a", "triggerType": "t", "\\ud83e": 1}',
    "surrogate-in-an-id": b'{"agentId": "\\ud83e", "triggerType": "t"}',
    "surrogate-in-metadata": b'{"agentId": "a", "triggerType": "t", "metadata": {"k": "\\ud83e"}}',
    "deep-lists": body_with(b"[" * 30_000 + b"]" * 30_000),
    "deep-objects": body_with(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "deep-and-cut-off": b"[" * 60_000,
    "leading-zero": body_with(b"01"),
    "hexadecimal": body_with(b"0x10"),
    "nan-in-an-unknown-field": body_with(b"NaN"),
    "infinity-in-an-unknown-field": body_with(b"-Infinity"),
    "nan-as-ttl": b'{"agentId": "a", "triggerType": "t", "ttlSeconds": NaN}',
    "infinity-as-ttl": b'{"agentId": "a", "triggerType": "t", "ttlSeconds": Infinity}',
    "huge-ttl": b'{"agentId": "a", "triggerType": "t", "ttlSeconds": 1e999}',
    "long-ttl": b'{"agentId": "a", "triggerType": "t", "ttlSeconds": %s}' % (b"9" * 5000),
    "list": b"[]",
    "text": b'"x"',
    "number": b"5",
    "true": b"true",
    "null": b"null",
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
async def test_what_is_no_json_is_refused(api: Api, body: bytes) -> None:
    refused = await api.post(content=body)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"].startswith("Validation error: ")
    assert refused.json()["details"][0]["field"] in ("body", "ttlSeconds")
    assert (await api.get()).json() == {"sessions": []}


@pytest.mark.settings(max_body_bytes=1_000_000)
@pytest.mark.parametrize("body", [b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"x":' + b"[" * 100_000])
async def test_a_body_nested_100000_deep_is_refused_on_every_route(api: Api, body: bytes) -> None:
    for method, path, _ in ROUTES.values():
        assert (await api.call(method, path, content=body)).status_code == 400


FIELD_NAMES = [*IDS, *(field for fields in WRONG.values() for field in fields)]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@hypothesis_settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    route=st.sampled_from(sorted(ROUTES)),
    body=st.dictionaries(st.sampled_from(FIELD_NAMES), VALUES, max_size=6).map(lambda body: json.dumps(body).encode())
    | st.binary(max_size=50),
    cut=st.integers(0, 200),
)
async def test_nothing_in_a_body_is_ever_the_servers_fault(api: Api, route: str, body: bytes, cut: int) -> None:
    """Right and wrong values in any mixture, whole and cut off: each is done, or refused for a reason."""
    method, path, _ = ROUTES[route]
    for content in (body, body[:cut]):
        answer = await api.call(method, path, content=content)
        assert answer.status_code in (200, 201, 400, 409), content
        assert answer.status_code < 400 or answer.json()["error"], content


@pytest.mark.parametrize("value", [b"1e999", b"-1e999", b"9" * 5000, b"NaN", b"Infinity", b"5.5", b"1e-3"])
async def test_an_age_that_is_no_whole_number_is_refused(api: Api, value: bytes) -> None:
    session = await api.create()
    refused = await api.post("/cleanup", content=b'{"maxAgeMinutes": %s}' % value)
    assert refused.status_code == 400
    assert await api.find(session["id"])


@pytest.mark.parametrize("value", [b"10", b"10.0", b"1e1"])
async def test_a_whole_number_is_one_however_it_is_written(api: Api, value: bytes) -> None:
    await api.create()
    await advance(api.store, 590)
    assert (await api.post("/cleanup", content=b'{"maxAgeMinutes": %s}' % value)).json() == {"cleaned": 0}
    await advance(api.store, 11)
    assert (await api.post("/cleanup", content=b'{"maxAgeMinutes": %s}' % value)).json() == {"cleaned": 1}


async def test_an_age_beyond_all_time_ends_nothing(api: Api) -> None:
    session = await api.create()
    for value in (2**31, 2**53 + 1, 2**64, 10**300):
        assert (await api.post("/cleanup", content=b'{"maxAgeMinutes": %d}' % value)).json() == {"cleaned": 0}
    assert await api.find(session["id"])


async def test_of_a_field_named_twice_the_last_counts(api: Api) -> None:
    made = await api.post(content=b'{"agentId": 5, "agentId": "a", "triggerType": "t"}')
    assert made.status_code == 201
    assert made.json()["session"]["agentId"] == "a"


async def test_escapes_in_json_mean_what_they_stand_for(api: Api) -> None:
    made = await api.post(content=rb'{"\u0061gentId": "\ud83e\udd16\u0000\/\"", "triggerType": "t"}')
    assert made.status_code == 201
    assert made.json()["session"]["agentId"] == EMOJI + '\0/"'


# --- how large a body may be ------------------------------------------------------------------------------------------

LIMIT = 65_536


def padded(size: int) -> bytes:
    return json.dumps(REQUIRED).encode().ljust(size)


async def chunked(body: bytes) -> AsyncIterator[bytes]:
    """The body without its length, in pieces."""
    for at in range(0, len(body), 10_000):
        yield body[at : at + 10_000]


async def test_a_body_of_exactly_the_limit_is_read(api: Api) -> None:
    assert (await api.post(content=padded(LIMIT))).status_code == 201
    assert (await api.post(content=chunked(padded(LIMIT)))).status_code == 201


@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 3_000_000])
async def test_a_larger_body_is_refused_with_and_without_its_length(api: Api, size: int) -> None:
    for body in (padded(size), chunked(padded(size))):
        refused = await api.post(content=body)
        assert refused.status_code == 413
        assert refused.json() == {"error": "The body may have 65536 bytes at most"}
    assert (await api.get()).json() == {"sessions": []}


@pytest.mark.parametrize("route", ROUTES)
async def test_every_route_that_reads_a_body_limits_it(api: Api, route: str) -> None:
    method, path, _ = ROUTES[route]
    assert (await api.call(method, path, content=padded(LIMIT + 1))).status_code == 413


@pytest.mark.settings(max_body_bytes=1024)
async def test_the_limit_is_a_setting(api: Api) -> None:
    assert (await api.post(content=padded(1024))).status_code == 201
    assert (await api.post(content=padded(1025))).status_code == 413


@pytest.mark.parametrize("backend", ["memory"])
async def test_over_the_wire_too_a_larger_body_gets_its_answer(settings: Settings) -> None:
    """The server reads on for a while: a client that is still sending would see a broken connection instead."""
    async with listening(settings) as url, httpx.AsyncClient() as client:
        for body in (padded(LIMIT + 500_000), chunked(padded(LIMIT + 500_000))):
            refused = await client.post(url + BASE, content=body)
            assert refused.status_code == 413
            assert refused.headers["connection"] == "close"


@pytest.mark.parametrize("backend", ["memory"])
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(settings) as url:
        place = urlsplit(url)
        _, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(b'POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{"agentId": ' % BASE.encode())
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()
        async with httpx.AsyncClient() as client:
            assert (await client.get(url + BASE)).json() == {"sessions": []}
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# --- query strings ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def spaced(api: Api) -> Json:
    """Of two sessions, the one whose agent has odd characters in its name."""
    await api.create(agentId="other")
    return await api.create(agentId="a b+c&d=e;f%")


@pytest.mark.parametrize(
    "query",
    [
        "agentId=a%20b%2Bc%26d%3De%3Bf%25",
        "agentId=a+b%2Bc%26d%3de%3bf%25",
        "agentId=a+b%2Bc%26d=e;f%25",
        "&&agentId=a+b%2Bc%26d%3De%3Bf%25&",
        "%61gentId=a+b%2Bc%26d%3De%3Bf%25",
        "agentId=other&agentId=a+b%2Bc%26d%3De%3Bf%25",
        "agentId=a+b%2Bc%26d%3De%3Bf%25&agentId=",
        "agentId=a+b%2Bc%26d%3De%3Bf%25&limit=&cursor=&taskId=&triggerType=&runnerSessionId=&runtimeInstanceId=",
        "agentId=a+b%2Bc%26d%3De%3Bf%25&nobody=knows&this",
    ],
)
async def test_a_query_is_read_as_forms_write_it(api: Api, spaced: Json, query: str) -> None:
    """Plus and %20 are spaces, of several values the last counts, an empty one means absent, unknown ones nothing."""
    answer = await api.get("?" + query)
    assert (answer.status_code, answer.json()) == (200, {"sessions": [spaced]})


@pytest.mark.parametrize("query", ["", "agentId", "agentId=", "agentId=&agentId="])
async def test_an_empty_value_asks_for_everything(api: Api, spaced: Json, query: str) -> None:
    assert len((await api.get("?" + query)).json()["sessions"]) == 2


def wrong_queries() -> Iterator[tuple[str, str, str]]:
    filters = ("agentId", "taskId", "triggerType", "runnerSessionId", "runtimeInstanceId")
    for name in filters:
        yield "GET", f"?{name}={'x' * 513}", name
        yield "GET", f"?{name}=%FF", "query"
        yield "GET", f"?{name}=%ED%A0%80", "query"
    for path in ("", "/events"):
        for value in ("0", "-1", "1001", "x", "1.5", "1e2", "99999999999999999999", "9" * 5000, "%D9%A1", "NaN"):
            yield "GET", f"{path}?limit={value}", "limit"
        yield "GET", f"{path}?%FF=1", "query"
        yield "GET", path + "?" + "&".join(f"x{number}=1" for number in range(101)), "query"
    for value in ("x", "1", "1_", "_", "1_x", "0199b1f2-6c1e-7d1a-9a55-0c3f3f8f2a10", "-1_" + "0" * 36, "%00"):
        yield "GET", f"?limit=1&cursor={value}", "cursor"
    for value in ("x", "-", "1", "1-", "-1", "1-1-1", "1-1.1-1", "%00", "1-99999999999999999999", "+1-1", "1-1."):
        yield "GET", f"/events?after={value}", "after"
    for value in ("created", "session.heartbeat", "session.created,session.ended"):
        yield "GET", f"/events?type={value}", "type"
    yield "GET", f"/events?agentId={'x' * 513}", "agentId"
    yield "DELETE", f"/by-task/t1?sessionId={'x' * 513}", "sessionId"
    yield "DELETE", "/by-task/t1?sessionId=%FF", "query"


async def test_wrong_queries_are_refused_and_change_nothing(api: Api) -> None:
    session = await api.create(taskId="t1")
    for method, path, field in wrong_queries():
        refused = await api.call(method, path)
        assert refused.status_code == 400, path[:80]
        assert refused.json()["error"].startswith(f"Validation error: {field}: "), path[:80]
        assert [detail["field"] for detail in refused.json()["details"]] == [field]
    assert (await api.get()).json() == {"sessions": [session]}


@pytest.mark.parametrize("value", ["1_0", "5.0", "%205", "5%00"])
async def test_a_limit_is_a_plain_number(api: Api, value: str) -> None:
    assert (await api.get(f"?limit={value}")).status_code == 400


async def test_a_filter_may_have_512_characters(api: Api) -> None:
    session = await api.create(agentId=EMOJI * 512)
    assert (await api.get(params={"agentId": EMOJI * 512})).json() == {"sessions": [session]}


# --- the Idempotency-Key header ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["x", "x" * 512, "a b,c;d=e", "\u00e9\u00ff"])
async def test_an_idempotency_key_may_be_any_header_text(api: Api, value: str) -> None:
    headers = {"Idempotency-Key": value.encode("latin-1")}
    first, second = [await api.post(json=REQUIRED, headers=headers) for _ in range(2)]
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()


@pytest.mark.parametrize("values", [[""], ["x" * 513], ["x", "x"], ["x", "y"], ["", "x"]])
async def test_an_unusable_idempotency_key_is_refused(api: Api, values: list[str]) -> None:
    refused = await api.post(json=REQUIRED, headers=[("Idempotency-Key", value) for value in values])
    assert refused.status_code == 400
    assert refused.json()["details"][0]["field"] == "Idempotency-Key"
    assert (await api.get()).json() == {"sessions": []}
