"""The vocabulary of the wire: what each request takes, what it refuses, and that answers have the contract's fields."""

from __future__ import annotations

import contextlib
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tracker import models
from tracker.models import (
    Cleanup,
    CreateSession,
    Event,
    Heartbeat,
    HeartbeatBatch,
    ListEvents,
    ListSessions,
    ProviderSession,
    Request,
    Session,
    Target,
    Text,
)

LEAST = {"agentId": "a1", "triggerType": "task_assigned"}
SOME_ID = "0199b1f2-6c1e-7003-9a55-0c3f3f8f2a10"


def refused(model: type[Request] | type[Text], **fields: Any) -> list[tuple[str, str]]:
    """Where and how it is refused."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields)
    return [(".".join(map(str, error["loc"])), error["type"]) for error in caught.value.errors()]


# --- create -----------------------------------------------------------------------------------------------------------


def test_agent_and_trigger_type_are_all_that_is_required() -> None:
    session = CreateSession.model_validate(LEAST)
    assert session.model_dump(exclude={"agent_id", "trigger_type"}, exclude_none=True) == {}
    assert refused(CreateSession) == [("agentId", "missing"), ("triggerType", "missing")]


@pytest.mark.parametrize("field", ["agentId", "triggerType"])
def test_required_means_neither_null_nor_empty(field: str) -> None:
    assert refused(CreateSession, **{**LEAST, field: None}) == [(field, "string_type")]
    assert refused(CreateSession, **{**LEAST, field: ""}) == [(field, "string_too_short")]


IDS = ["agentId", "triggerType", "taskId", "inboxMessageId", "runnerSessionId", "runtimeInstanceId"]


@pytest.mark.parametrize("field", IDS)
@pytest.mark.parametrize("text", ["x", "x" * 512, "😀" * 512, "\0", " ", "/", "%2F"])
def test_an_id_is_any_text_of_1_to_512_characters(field: str, text: str) -> None:
    session = CreateSession.model_validate({**LEAST, field: text})
    assert session.model_dump(by_alias=True)[field] == text


@pytest.mark.parametrize("field", IDS)
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "string_too_short"),
        ("x" * 513, "string_too_long"),
        (5, "string_type"),
        (True, "string_type"),
        ([], "string_type"),
        ({}, "string_type"),
        (b"bytes", "string_type"),
        ("\ud800", "string_unicode"),
    ],
)
def test_an_id_is_nothing_else_and_nothing_is_coerced(field: str, value: Any, problem: str) -> None:
    assert refused(CreateSession, **{**LEAST, field: value}) == [(field, problem)]


OPTIONAL = [
    "taskId",
    "inboxMessageId",
    "taskDescription",
    "runnerSessionId",
    "runtimeInstanceId",
    "ttlSeconds",
    "metadata",
    "onConflict",
]


@pytest.mark.parametrize("field", OPTIONAL)
def test_null_means_absent(field: str) -> None:
    assert CreateSession.model_validate({**LEAST, field: None}) == CreateSession.model_validate(LEAST)


def test_unknown_fields_are_ignored() -> None:
    assert CreateSession.model_validate({**LEAST, "color": "red", "agent_id": 5}) == CreateSession.model_validate(LEAST)


@pytest.mark.parametrize("text", ["", "x" * 16_384])
def test_a_description_has_up_to_16384_characters(text: str) -> None:
    assert CreateSession.model_validate({**LEAST, "taskDescription": text}).task_description == text


def test_a_longer_description_is_refused() -> None:
    assert refused(CreateSession, **LEAST, taskDescription="x" * 16_385) == [("taskDescription", "string_too_long")]


@pytest.mark.parametrize("ttl", [1, 1.0, 1.5, 86_400, 0.1 + 0.9])
def test_a_ttl_is_1_to_86400_seconds_fractions_allowed(ttl: float) -> None:
    assert CreateSession.model_validate({**LEAST, "ttlSeconds": ttl}).ttl_seconds == ttl


@pytest.mark.parametrize("ttl", [0, 0.999, -1, 86_400.001, 10**400, float("inf"), float("nan"), True, "60", [], {}])
def test_another_ttl_is_refused(ttl: Any) -> None:
    ((field, _),) = refused(CreateSession, **LEAST, ttlSeconds=ttl)
    assert field == "ttlSeconds"


@pytest.mark.parametrize(
    "metadata",
    [{}, {"k": ""}, {"k" * 64: "v" * 512}, {f"k{number}": "v" for number in range(32)}, {"\0": "\0"}],
)
def test_metadata_is_up_to_32_texts_by_name(metadata: dict[str, str]) -> None:
    assert CreateSession.model_validate({**LEAST, "metadata": metadata}).metadata == metadata


@pytest.mark.parametrize(
    "metadata",
    [
        {"": "v"},
        {"k" * 65: "v"},
        {"k": "v" * 513},
        {f"k{number}": "v" for number in range(33)},
        {"k": 5},
        {"k": None},
        {"k": {}},
        {"k": "\ud800"},
        {"\ud800": "v"},
        [],
        "text",
        5,
    ],
)
def test_other_metadata_is_refused(metadata: Any) -> None:
    problems = refused(CreateSession, **LEAST, metadata=metadata)
    assert all(field.startswith("metadata") for field, _ in problems)


@pytest.mark.parametrize("policy", ["supersede", "reject", "replace", "reuse"])
def test_there_are_four_policies(policy: str) -> None:
    assert CreateSession.model_validate({**LEAST, "onConflict": policy}).on_conflict == policy


@pytest.mark.parametrize("policy", ["", "SUPERSEDE", "ignore", 5, []])
def test_another_policy_is_refused(policy: Any) -> None:
    assert refused(CreateSession, **LEAST, onConflict=policy) == [("onConflict", "literal_error")]


@pytest.mark.parametrize("body", [[], "text", 5, None, True])
def test_a_body_is_an_object(body: Any) -> None:
    with pytest.raises(ValidationError):
        CreateSession.model_validate(body)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=5))
def test_whatever_a_client_sends_is_taken_or_refused(value: Any) -> None:
    """With a ValidationError, never another exception."""
    for field in [*OPTIONAL, "agentId"]:
        with contextlib.suppress(ValidationError):
            assert CreateSession.model_validate({**LEAST, field: value}).agent_id


# --- the other requests -----------------------------------------------------------------------------------------------


def test_a_heartbeat_may_be_empty() -> None:
    assert Heartbeat.model_validate({}) == Heartbeat.model_validate({"sessionId": None, "progress": None})


@pytest.mark.parametrize("progress", ["", "x" * 512])
def test_progress_has_up_to_512_characters_and_may_be_empty(progress: str) -> None:
    assert Heartbeat.model_validate({"progress": progress}).progress == progress


def test_other_progress_is_refused() -> None:
    assert refused(Heartbeat, progress="x" * 513) == [("progress", "string_too_long")]
    assert refused(Heartbeat, progress=3) == [("progress", "string_type")]
    assert refused(Heartbeat, sessionId="") == [("sessionId", "string_too_short")]


def test_a_batch_holds_up_to_1000_targets_in_all() -> None:
    ids = [str(number) for number in range(1000)]
    assert HeartbeatBatch.model_validate({"taskIds": ids}).task_ids == ids
    assert HeartbeatBatch.model_validate({"taskIds": ids[:400], "sessionIds": ids[:600]}).session_ids == ids[:600]
    assert refused(HeartbeatBatch, taskIds=[*ids, "one more"]) == [("taskIds", "too_long")]
    assert refused(HeartbeatBatch, taskIds=ids[:500], sessionIds=ids[:501]) == [("", "value_error")]


def test_a_batch_may_be_empty() -> None:
    bodies: list[dict[str, Any]] = [{}, {"taskIds": []}, {"taskIds": None, "sessionIds": []}]
    for body in bodies:
        batch = HeartbeatBatch.model_validate(body)
        assert not batch.task_ids
        assert not batch.session_ids


@pytest.mark.parametrize("ids", ["t1", {"t1": 1}, [5], [None], [""], ["x" * 513], 5])
def test_a_batch_of_anything_but_ids_is_refused(ids: Any) -> None:
    ((field, _),) = refused(HeartbeatBatch, taskIds=ids)
    assert field.startswith("taskIds")


def test_a_provider_session_needs_its_id() -> None:
    assert refused(ProviderSession) == [("providerSessionId", "missing")]
    assert refused(ProviderSession, providerSessionId="") == [("providerSessionId", "string_too_short")]
    assert refused(ProviderSession, providerSessionId=None) == [("providerSessionId", "string_type")]
    assert ProviderSession.model_validate({"providerSessionId": "p"}).session_id is None


@pytest.mark.parametrize("minutes", [0, 1, 10**30])
def test_an_age_is_any_whole_number_of_minutes(minutes: int) -> None:
    assert Cleanup.model_validate({"maxAgeMinutes": minutes}).max_age_minutes == minutes


@pytest.mark.parametrize("minutes", [-1, 0.5, "5", True, [], float("nan")])
def test_another_age_is_refused(minutes: Any) -> None:
    ((field, _),) = refused(Cleanup, maxAgeMinutes=minutes)
    assert field == "maxAgeMinutes"


def test_a_cleanup_may_be_empty() -> None:
    everything = Cleanup.model_validate({})
    assert (everything.agent_id, everything.max_age_minutes, everything.runtime_instance_id) == (None, None, None)


# --- query strings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["1", "1000", 5])
def test_a_limit_is_1_to_1000_written_as_text(limit: Any) -> None:
    assert ListSessions.model_validate({"limit": limit}).limit == int(limit)
    assert ListEvents.model_validate({"limit": limit}).limit == int(limit)


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "", "x", "1.5", "1e2", "\u0661", "1" * 5000, "nan"])
@pytest.mark.parametrize("model", [ListSessions, ListEvents])
def test_another_limit_is_refused(model: type[Text], limit: str) -> None:
    ((field, _),) = refused(model, limit=limit)
    assert field == "limit"


def test_a_cursor_is_a_start_and_an_id() -> None:
    cursor = f"1795473222695_{SOME_ID}"
    assert ListSessions.model_validate({"cursor": cursor}).cursor == cursor


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "1",
        SOME_ID,
        f"_{SOME_ID}",
        f"-1_{SOME_ID}",
        f"{'1' * 16}_{SOME_ID}",
        f"1_{SOME_ID}\n",
        f"\n1_{SOME_ID}",
        f"1_{SOME_ID}x",
        f"1_{SOME_ID.upper()}",
        f"\u0661_{SOME_ID}",
        "1_ce3e8b3e-57a5-4e3e-8a3a-7f2f9a3ee2f1",
    ],
)
def test_another_cursor_is_refused(cursor: str) -> None:
    ((field, _),) = refused(ListSessions, cursor=cursor)
    assert field == "cursor"


@pytest.mark.parametrize("field", ["agentId", "taskId", "triggerType", "runnerSessionId", "runtimeInstanceId"])
def test_a_filter_has_up_to_512_characters_and_may_be_empty(field: str) -> None:
    for text in ("", "x" * 512):
        assert ListSessions.model_validate({field: text}).model_dump(by_alias=True)[field] == text
    assert refused(ListSessions, **{field: "x" * 513}) == [(field, "string_too_long")]


def test_an_event_type_is_one_of_three() -> None:
    for name in ("session.created", "session.updated", "session.ended"):
        assert ListEvents.model_validate({"type": name}).type == name
    assert refused(ListEvents, type="session.heartbeat") == [("type", "literal_error")]


# --- answers, and all of it -------------------------------------------------------------------------------------------


def test_a_session_has_the_contracts_fields_in_its_order() -> None:
    ids = ["id", "agentId", "taskId", "triggerType", "inboxMessageId", "taskDescription"]
    times = ["startedAt", "lastHeartbeatAt"]
    others = ["runnerSessionId", "providerSessionId", "runtimeInstanceId"]
    state = ["ttlSeconds", "expiresAt", "progress", "stopRequestedAt", "metadata"]
    assert list(Session.__annotations__) == ids + times + others + state
    assert Session.__required_keys__ == set(Session.__annotations__), "every field is always there"


def test_an_event_has_the_contracts_fields_in_its_order() -> None:
    assert list(Event.__annotations__) == ["id", "type", "at", "reason", "session"]


def test_end_reasons_are_those_of_their_type() -> None:
    assert set(models.END_REASONS) == {"deleted", "expired", "replaced", "cleaned"}


REQUESTS = [
    model
    for model in vars(models).values()
    if isinstance(model, type) and issubclass(model, Request | Text) and model not in (Request, Text)
]


@pytest.mark.parametrize("model", REQUESTS)
def test_every_request_is_frozen_and_ignores_what_it_does_not_know(model: type[Request]) -> None:
    assert model.model_config["frozen"]
    assert model.model_config["extra"] == "ignore"
    if issubclass(model, Request):
        assert model.model_config["strict"]


@pytest.mark.parametrize("model", REQUESTS)
def test_every_example_of_a_request_is_one(model: type[Request]) -> None:
    for example in model.model_json_schema(by_alias=True).get("examples", []):
        assert model.model_validate(example).model_dump(by_alias=True, exclude_none=True)


@pytest.mark.parametrize("model", REQUESTS)
def test_every_field_of_a_request_is_named_as_on_the_wire_and_described(model: type[Request]) -> None:
    for name, schema in model.model_json_schema(by_alias=True)["properties"].items():
        assert "_" not in name
        if (model, name) != (ProviderSession, "providerSessionId"):
            assert schema.get("description"), f"{model.__name__}.{name} says nothing"


@pytest.mark.parametrize("answer", [Session, Event, models.Stats, models.EventPage, models.Sessions])
def test_every_answer_has_a_schema(answer: Any) -> None:
    schema = TypeAdapter(answer).json_schema()
    assert list(schema["properties"]) == list(get_type_hints(answer))


def test_a_target_says_by_what_it_means_a_session() -> None:
    assert Target.task("x") == Target("task", "x")
    assert Target.id("x") == Target("id", "x")
    assert Target.task("x") != Target.id("x")
    assert len({Target.task("x"), Target.task("x"), Target.id("x")}) == 2
