"""SessionStore: what each call does to a session, which session it means, and what it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_core import from_json

from tests.audit import audit
from tests.clockwork import advance
from tests.conftest import OpenPod
from tests.store.wire import ODD_TEXTS, a_list, a_run, some_events
from tracker.errors import Conflict, IdempotencyMismatch
from tracker.models import Event, EventType, Session, Target
from tracker.settings import Settings
from tracker.store.ids import shard_of_text
from tracker.store.keys import Shard
from tracker.store.sessions import SessionStore
from tracker.store.snapshot import timestamp
from tracker.store.store import Store

TASK = Target.task("t1")
FOREIGN_ID = "0199b1f2-6c1e-7000-9a55-0c3f3f8f2a10"


@pytest.fixture
async def sessions(store: Store) -> AsyncIterator[SessionStore]:
    """After each test all keys must agree."""
    yield store.sessions
    await audit(store)


async def made(sessions: SessionStore, *args: Any, **fields: Any) -> Session:
    """A session that did not exist before."""
    created = await sessions.create(a_run(*args, **fields))
    assert created.outcome == "created"
    return created.session


async def told(store: Store, kind: EventType | None = None) -> list[Event]:
    return (await store.feed.page(some_events(type=kind, limit=1000)))["events"]


async def ends(store: Store) -> list[tuple[str, str | None]]:
    """Who ended and why, in order."""
    return [(event["session"]["id"], event["reason"]) for event in await told(store, "session.ended")]


# --- create -----------------------------------------------------------------------------------------------------------


async def test_a_new_session_has_every_field(sessions: SessionStore) -> None:
    session = await made(
        sessions,
        "t1",
        "a1",
        inboxMessageId="m",
        taskDescription="fix the flaky test",
        runnerSessionId="r",
        runtimeInstanceId="i",
        ttlSeconds=90.5,
        metadata={"branch": "main"},
    )
    assert session == {
        "id": session["id"],
        "agentId": "a1",
        "taskId": "t1",
        "triggerType": "task_assigned",
        "inboxMessageId": "m",
        "taskDescription": "fix the flaky test",
        "startedAt": session["startedAt"],
        "lastHeartbeatAt": session["startedAt"],
        "runnerSessionId": "r",
        "providerSessionId": None,
        "runtimeInstanceId": "i",
        "ttlSeconds": 90.5,
        "expiresAt": session["expiresAt"],
        "progress": None,
        "stopRequestedAt": None,
        "metadata": {"branch": "main"},
    }
    assert list(session) == list(Session.__annotations__)


async def test_what_is_not_given_reads_as_null_and_the_default_ttl_holds(sessions: SessionStore) -> None:
    session = await made(sessions, None)
    absent = ("taskId", "inboxMessageId", "taskDescription", "runnerSessionId", "runtimeInstanceId")
    assert [session[field] for field in absent] == [None] * 5  # type: ignore[literal-required]
    assert session["ttlSeconds"] == 1800
    assert session["metadata"] == {}


async def test_the_deadline_is_one_ttl_after_the_start(sessions: SessionStore) -> None:
    session = await made(sessions, ttlSeconds=1.25)
    started = int(session["id"].replace("-", "")[:12], 16)
    assert session["startedAt"] == timestamp(started)
    assert session["expiresAt"] == timestamp(started + 1250)


@pytest.mark.settings(ttl_seconds=7.5)
async def test_the_default_ttl_is_the_settings(sessions: SessionStore) -> None:
    assert (await made(sessions))["ttlSeconds"] == 7.5


async def test_a_session_is_found_by_task_and_by_id(sessions: SessionStore) -> None:
    session = await made(sessions)
    assert await sessions.get(TASK) == session
    assert await sessions.get(Target.id(session["id"])) == session


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
async def test_any_text_in_any_field_comes_back_exactly(store: Store, sessions: SessionStore, text: str) -> None:
    session = await made(
        sessions,
        text,
        text,
        triggerType=text,
        inboxMessageId=text,
        taskDescription=text,
        runnerSessionId=text,
        runtimeInstanceId=text,
        metadata={text[:64]: text, "other": ""},
    )
    target = Target.task(text)
    assert await sessions.set_provider_session(target, text)
    assert await sessions.heartbeat(target, progress=text)

    kept = await sessions.get(target)
    assert kept is not None
    fields = (
        "taskId agentId triggerType inboxMessageId taskDescription runnerSessionId runtimeInstanceId "
        "providerSessionId progress"
    )
    assert {kept[field] for field in fields.split()} == {text}  # type: ignore[literal-required]
    assert kept["metadata"] == {text[:64]: text, "other": ""}
    assert kept["id"] == session["id"]
    assert await sessions.get(Target.id(session["id"])) == kept

    for query in ("agentId", "taskId", "triggerType", "runnerSessionId", "runtimeInstanceId"):
        assert list(map(from_json, (await store.listing.page(a_list(**{query: text}), 10))[0])) == [kept]
    assert (await store.stats())["byAgent"] == [{"agentId": text, "sessions": 1}]

    assert await sessions.delete(target)
    assert (await told(store))[-1]["session"] == kept


async def test_the_longest_description_and_the_largest_metadata_come_back_exactly(sessions: SessionStore) -> None:
    about = "\U0001f600" * 16_384
    metadata = {f"{number:02d}" + "\0" * 62: "😀" * 512 for number in range(32)}
    session = await made(sessions, taskDescription=about, metadata=metadata)
    assert session["taskDescription"] == about
    assert session["metadata"] == metadata
    assert await sessions.get(TASK) == session


async def test_an_empty_description_is_not_an_absent_one(sessions: SessionStore) -> None:
    assert (await made(sessions, taskDescription=""))["taskDescription"] == ""


async def test_sessions_without_a_task_do_not_know_each_other(sessions: SessionStore) -> None:
    first, second = await made(sessions, None), await made(sessions, None, onConflict="reject")
    assert first["id"] != second["id"]
    assert await sessions.get(Target.id(first["id"])) == first


# --- onConflict -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, "supersede", "replace"])
async def test_an_agent_that_starts_a_task_anew_replaces_its_own_session(
    store: Store, sessions: SessionStore, policy: str | None
) -> None:
    first = await made(sessions)
    second = await made(sessions, onConflict=policy)
    assert await sessions.get(TASK) == second
    assert await sessions.get(Target.id(first["id"])) is None
    assert await ends(store) == [(first["id"], "replaced")]
    assert [event["type"] for event in await told(store)] == ["session.created", "session.ended", "session.created"]


@pytest.mark.parametrize("policy", [None, "supersede", "reject"])
async def test_another_agents_live_session_is_a_conflict(
    store: Store, sessions: SessionStore, policy: str | None
) -> None:
    holder = await made(sessions, "t1", "a1")
    with pytest.raises(Conflict) as refused:
        await sessions.create(a_run("t1", "a2", onConflict=policy))
    assert refused.value.session == holder
    assert await sessions.get(TASK) == holder
    assert await ends(store) == []


async def test_reject_refuses_the_same_agent_too(sessions: SessionStore) -> None:
    holder = await made(sessions)
    with pytest.raises(Conflict) as refused:
        await sessions.create(a_run(onConflict="reject"))
    assert refused.value.session == holder


async def test_replace_takes_the_task_from_another_agent(store: Store, sessions: SessionStore) -> None:
    first = await made(sessions, "t1", "a1")
    second = await made(sessions, "t1", "a2", onConflict="replace")
    assert await sessions.get(TASK) == second
    assert await ends(store) == [(first["id"], "replaced")]


@pytest.mark.parametrize("agent", ["a1", "a2"])
async def test_reuse_renews_the_live_session_as_a_heartbeat_would(
    store: Store, sessions: SessionStore, agent: str
) -> None:
    first = await made(sessions, taskDescription="the first", ttlSeconds=60)
    await advance(store, 30)
    created = await sessions.create(a_run("t1", agent, onConflict="reuse", taskDescription="the second", ttlSeconds=5))
    assert created.outcome == "reused"
    again = created.session
    assert again["lastHeartbeatAt"] >= first["lastHeartbeatAt"]
    unchanged = first.keys() - {"startedAt", "lastHeartbeatAt", "expiresAt"}
    assert {field: again[field] for field in unchanged} == {field: first[field] for field in unchanged}  # type: ignore[literal-required]
    await advance(store, 59)
    assert await sessions.get(TASK)
    await advance(store, 1.5)
    assert await sessions.get(TASK) is None
    assert [event["type"] for event in await told(store)] == ["session.created"]


@pytest.mark.parametrize("policy", ["supersede", "reject", "replace", "reuse"])
async def test_an_expired_holder_that_nobody_swept_is_no_conflict_and_ends_as_expired(
    store: Store, sessions: SessionStore, policy: str
) -> None:
    first = await made(sessions, "t1", "a1")
    await advance(store, 1801)
    second = await made(sessions, "t1", "a2", onConflict=policy)
    assert await sessions.get(TASK) == second
    assert await ends(store) == [(first["id"], "expired")]
    assert await store.sweeper.sweep() == 0


@pytest.mark.parametrize("policy", ["supersede", "reject", "reuse"])
async def test_200_concurrent_creates_of_one_task_leave_one_live_session(
    store: Store, sessions: SessionStore, open_pod: OpenPod, policy: str
) -> None:
    """From two pods, each agent for itself."""
    async with open_pod() as pod:
        outcomes = await asyncio.gather(
            *(
                (store, pod)[number % 2].sessions.create(a_run("t1", f"a{number}", onConflict=policy))
                for number in range(200)
            ),
            return_exceptions=True,
        )
    live = list(map(from_json, (await store.listing.page(a_list(), 1000))[0]))
    assert len(live) == 1
    created = [outcome for outcome in outcomes if not isinstance(outcome, Conflict)]
    assert len([1 for outcome in outcomes if getattr(outcome, "outcome", "") == "created"]) == 1
    assert len(created) == (200 if policy == "reuse" else 1)
    for outcome in outcomes:
        assert isinstance(outcome, Conflict) or not isinstance(outcome, BaseException), outcome
        assert outcome.session["id"] == live[0]["id"]
    assert len(await told(store)) == 1


async def test_200_concurrent_replacements_of_one_task_leave_one_live_session(
    store: Store, sessions: SessionStore, open_pod: OpenPod
) -> None:
    async with open_pod() as pod:
        created = await asyncio.gather(
            *((store, pod)[number % 2].sessions.create(a_run(onConflict="replace")) for number in range(200))
        )
    live = list(map(from_json, (await store.listing.page(a_list(), 1000))[0]))
    assert len(live) == 1
    assert {end for end, _ in await ends(store)} == {one.session["id"] for one in created} - {live[0]["id"]}


# --- Idempotency-Key --------------------------------------------------------------------------------------------------


async def test_the_same_key_and_body_again_gives_the_first_session(store: Store, sessions: SessionStore) -> None:
    first = await sessions.create(a_run(), "key")
    again = await sessions.create(a_run(), "key")
    assert (first.outcome, again.outcome) == ("created", "repeated")
    assert again.session == first.session
    assert len(await told(store)) == 1


async def test_a_repeat_shows_the_session_as_it_is_now_and_does_not_renew_it(
    store: Store, sessions: SessionStore
) -> None:
    await sessions.create(a_run(), "key")
    await sessions.heartbeat(TASK, progress="half way")
    await advance(store, 60)
    now = await sessions.get(TASK)
    assert (await sessions.create(a_run(), "key")).session == now


async def test_a_repeat_after_the_session_has_ended_makes_no_other(store: Store, sessions: SessionStore) -> None:
    first = await sessions.create(a_run(metadata={"branch": "main"}), "key")
    assert await sessions.delete(TASK)
    again = await sessions.create(a_run(metadata={"branch": "main"}), "key")
    assert again.outcome == "repeated"
    assert again.session == first.session
    assert await sessions.get(TASK) is None
    assert len(await told(store, "session.created")) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"agentId": "a2"},
        {"taskDescription": ""},
        {"metadata": {"k": "v"}},
        {"ttlSeconds": 5},
        {"onConflict": "replace"},
        {"triggerType": "other"},
    ],
    ids=lambda other: next(iter(other)),
)
async def test_the_same_key_with_another_body_is_refused(
    store: Store, sessions: SessionStore, other: dict[str, Any]
) -> None:
    first = await sessions.create(a_run(), "key")
    with pytest.raises(IdempotencyMismatch):
        await sessions.create(a_run(**other), "key")
    assert await sessions.get(TASK) == first.session
    assert len(await told(store)) == 1


async def test_other_keys_mean_other_sessions(sessions: SessionStore) -> None:
    first = await sessions.create(a_run(None), "key")
    second = await sessions.create(a_run(None), "key ")
    assert first.session["id"] != second.session["id"]


@pytest.mark.parametrize("shards", [4])
async def test_a_key_means_one_body_even_where_the_tasks_are_in_different_shards(
    store: Store, sessions: SessionStore
) -> None:
    shards = [shard_of_text(f"t{number}", 4) for number in range(12)]
    assert set(shards) == {0, 1, 2, 3}
    for number in range(12):
        key = f"key {number}"
        first = await sessions.create(a_run(f"t{number}"), key)
        for other in range(12):
            if other != number:
                with pytest.raises(IdempotencyMismatch):
                    await sessions.create(a_run(f"t{other}"), key)
        again = await sessions.create(a_run(f"t{number}"), key)
        assert (again.outcome, again.session) == ("repeated", first.session)
    assert len(await told(store)) == 12


@pytest.mark.parametrize("shards", [4])
async def test_a_key_without_a_task_finds_its_session_in_the_keys_own_shard(
    store: Store, sessions: SessionStore
) -> None:
    for number in range(12):
        first = await sessions.create(a_run(None), f"key {number}")
        assert (await sessions.create(a_run(None), f"key {number}")).session == first.session
    assert len(await told(store)) == 12


@pytest.mark.parametrize("shards", [1, 4])
async def test_one_key_sent_many_times_at_once_makes_one_session(
    store: Store, sessions: SessionStore, open_pod: OpenPod
) -> None:
    async with open_pod() as pod:
        outcomes = await asyncio.gather(
            *((store, pod)[number % 2].sessions.create(a_run(), "key") for number in range(50))
        )
    assert sorted(outcome.outcome for outcome in outcomes) == ["created"] + ["repeated"] * 49
    assert len({outcome.session["id"] for outcome in outcomes}) == 1


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
@pytest.mark.parametrize("shards", [4])
async def test_any_text_can_be_a_key(sessions: SessionStore, text: str) -> None:
    first = await sessions.create(a_run(), text)
    assert (await sessions.create(a_run(), text)).session == first.session
    with pytest.raises(IdempotencyMismatch):
        await sessions.create(a_run("t2"), text)


async def test_a_key_is_forgotten_after_a_day(store: Store, sessions: SessionStore) -> None:
    first = await sessions.create(a_run(None), "key")
    await advance(store, 3600)
    await store.sweeper.sweep()
    await advance(store, 86_400 - 3600 - 60)
    assert (await sessions.create(a_run(None), "key")).outcome == "repeated"
    await advance(store, 120)
    second = await sessions.create(a_run(None), "key")
    assert second.outcome == "created"
    assert second.session["id"] != first.session["id"]


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_key_that_met_a_conflict_may_be_tried_again_and_for_something_else(sessions: SessionStore) -> None:
    """No session came of it, in whichever shards key and task are."""
    for number in range(8):
        task, key = Target.task(f"t{number}"), f"key {number % 3}-{number}"
        await made(sessions, task.value, "a1")
        for _ in range(2):
            with pytest.raises(Conflict):
                await sessions.create(a_run(task.value, "a2"), key)
        if number % 2:
            await sessions.delete(task)
            assert (await sessions.create(a_run(task.value, "a2"), key)).outcome == "created"
        else:
            assert (await sessions.create(a_run(f"other {number}", "a2"), key)).outcome == "created"
        with pytest.raises(IdempotencyMismatch):
            await sessions.create(a_run(f"yet another {number}", "a2"), key)


@pytest.mark.parametrize("shards", [4])
@pytest.mark.parametrize("last", ["the refused", "the successful"])
async def test_a_key_that_met_a_conflict_still_means_the_session_that_another_call_with_it_made(
    store: Store, sessions: SessionStore, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """Whichever of the two claimed it last: the one that was refused gives back no claim but its own."""
    home = shard_of_text("key", 4)
    task, other = [name for name in (f"t{number}" for number in range(20)) if shard_of_text(name, 4) != home][:2]
    await made(sessions, task, "a2")
    claimed, refused, go, run = asyncio.Event(), asyncio.Event(), asyncio.Event(), store.scripts.run

    async def run_in_turn(name: str, shard: Shard, *arguments: Any) -> Any:
        if name == "claim" and arguments[-1] == 0:
            refused.set()
            await go.wait()
        reply = await run(name, shard, *arguments)
        if name == "claim" and last == "the refused" and not claimed.is_set():
            claimed.set()
            await refused.wait()
            await sessions.delete(Target.task(task))
        return reply

    monkeypatch.setattr(store.scripts, "run", run_in_turn)
    request = a_run(task, onConflict="reject")
    if last == "the refused":
        successful = asyncio.create_task(sessions.create(request, "key"))
        await claimed.wait()
        failing = asyncio.create_task(sessions.create(request, "key"))
    else:
        failing = asyncio.create_task(sessions.create(request, "key"))
        await refused.wait()
        await sessions.delete(Target.task(task))
        successful = asyncio.create_task(sessions.create(request, "key"))
    assert (await successful).outcome == "created"
    go.set()
    with pytest.raises(Conflict):
        await failing
    with pytest.raises(IdempotencyMismatch):
        await sessions.create(a_run(other), "key")
    assert (await sessions.create(request, "key")).session == (await successful).session


async def test_a_key_that_met_a_live_session_to_reuse_means_that_session(store: Store, sessions: SessionStore) -> None:
    first = await made(sessions)
    reused = await sessions.create(a_run(onConflict="reuse"), "key")
    assert await sessions.delete(TASK)
    again = await sessions.create(a_run(onConflict="reuse"), "key")
    assert (reused.outcome, again.outcome) == ("reused", "repeated")
    assert again.session["id"] == first["id"]
    assert await sessions.get(TASK) is None


# --- heartbeat --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["task", "id"])
async def test_a_heartbeat_renews_the_deadline_and_nothing_else(
    store: Store, sessions: SessionStore, kind: str
) -> None:
    session = await made(sessions, ttlSeconds=60)
    target = TASK if kind == "task" else Target.id(session["id"])
    for _ in range(5):
        await advance(store, 50)
        before = await sessions.get(target)
        beat = await sessions.heartbeat(target)
        after = await sessions.get(target)
        assert beat
        assert before
        assert after
        assert after == {**before, "lastHeartbeatAt": after["lastHeartbeatAt"], "expiresAt": timestamp(beat.due)}
        assert after["lastHeartbeatAt"] == timestamp(beat.due - 60_000)
        assert not beat.stop_requested
    assert len(await told(store)) == 1, "heartbeats are not in the feed"


async def test_a_session_that_is_heartbeated_within_its_ttl_outlives_its_grace(
    store: Store, sessions: SessionStore
) -> None:
    await made(sessions, ttlSeconds=60)
    for _ in range(100):
        await advance(store, 59)
        assert await store.sweeper.sweep() == 0
        assert await sessions.heartbeat(TASK)
    assert await audit(store) == 1


async def test_the_hash_keeps_for_its_ttl_and_the_grace(store: Store, sessions: SessionStore) -> None:
    await made(sessions, ttlSeconds=60)
    await advance(store, 60 + 3590)
    assert await store.sweeper.sweep() == 1
    (_, end) = await told(store)
    assert end["session"]["agentId"] == "a1"


async def test_progress_stays_until_another_comes_and_may_be_empty(sessions: SessionStore) -> None:
    await made(sessions)

    async def progress_after(progress: str | None) -> str | None:
        assert await sessions.heartbeat(TASK, progress=progress)
        session = await sessions.get(TASK)
        assert session is not None
        return session["progress"]

    assert await progress_after(None) is None
    assert await progress_after("1 of 7") == "1 of 7"
    assert await progress_after(None) == "1 of 7"
    assert await progress_after("=") == "="
    assert await progress_after("") == ""


async def test_many_heartbeats_at_once_tell_which_sessions_are_missing(store: Store, sessions: SessionStore) -> None:
    first, second = await made(sessions, "t1"), await made(sessions, None)
    gone = await made(sessions, "t3")
    await sessions.delete(Target.task("t3"))
    targets = [
        Target.task("t1"),
        Target.task("never was"),
        Target.id(second["id"]),
        Target.id(gone["id"]),
        Target.id("no UUID"),
        Target.id("t1"),
        Target.task(first["id"]),
    ]
    await advance(store, 60)
    beats = await sessions.heartbeat_all(targets + targets[:1])
    assert list(beats) == targets
    assert {target for target, beat in beats.items() if beat} == {targets[0], targets[2]}
    for target in (targets[0], targets[2]):
        session, beat = await sessions.get(target), beats[target]
        assert session
        assert beat
        assert session["expiresAt"] == timestamp(beat.due)


async def test_no_heartbeats_at_once_are_none(sessions: SessionStore) -> None:
    assert await sessions.heartbeat_all([]) == {}


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_thousand_heartbeats_at_once_renew_a_thousand_sessions(store: Store, sessions: SessionStore) -> None:
    await asyncio.gather(*(sessions.create(a_run(f"t{number}")) for number in range(1000)))
    beats = await sessions.heartbeat_all(Target.task(f"t{number}") for number in range(1000))
    assert len(beats) == 1000
    assert all(beats.values())


# --- expiry -----------------------------------------------------------------------------------------------------------


async def test_an_expired_session_is_gone_for_everybody_before_any_sweep(store: Store, sessions: SessionStore) -> None:
    session = await made(sessions)
    for target in (TASK, Target.id(session["id"])):
        await advance(store, 1801)
        assert await sessions.get(target) is None
        assert await sessions.heartbeat(target) is None
        assert (await sessions.heartbeat_all([target]))[target] is None
        assert await sessions.heartbeat(target, guard=session["id"]) is None
        assert not await sessions.set_provider_session(target, "p")
        assert not await sessions.request_stop(target)
        assert not await sessions.delete(target)
    for query in (a_list(), a_list(agentId="a1"), a_list(taskId="t1")):
        assert await store.listing.page(query, 10) == ([], None)
        assert [chunk async for chunk in store.listing.chunks(query)] == []
    assert (await store.stats())["sessions"] == 0
    assert len(await told(store)) == 1
    assert await audit(store) == 1


async def test_a_session_lives_until_its_deadline(store: Store, sessions: SessionStore) -> None:
    await made(sessions)
    await advance(store, 1799)
    assert await sessions.get(TASK)
    await advance(store, 1)
    assert await sessions.get(TASK) is None


async def test_a_heartbeat_between_deadline_and_sweep_revives_nothing(store: Store, sessions: SessionStore) -> None:
    session = await made(sessions)
    await advance(store, 1801)
    assert await sessions.heartbeat(TASK) is None
    assert await store.sweeper.sweep() == 1
    assert await sessions.heartbeat(TASK) is None
    assert await ends(store) == [(session["id"], "expired")]


# --- fencing ----------------------------------------------------------------------------------------------------------


async def test_a_replaced_run_can_neither_keep_alive_nor_mark_nor_end_its_successor(
    store: Store, sessions: SessionStore
) -> None:
    first, second = await made(sessions), await made(sessions)
    await advance(store, 60)
    before = await sessions.get(TASK)
    for act in (
        lambda: sessions.heartbeat(TASK, guard=first["id"], progress="mine"),
        lambda: sessions.set_provider_session(TASK, "mine", guard=first["id"]),
        lambda: sessions.delete(TASK, guard=first["id"]),
    ):
        with pytest.raises(Conflict) as refused:
            await act()
        assert refused.value.session == before
    assert await sessions.get(TASK) == before
    assert await ends(store) == [(first["id"], "replaced")]
    assert before is not None
    assert before["id"] == second["id"]


async def test_the_live_run_passes_its_own_guard(sessions: SessionStore) -> None:
    session = await made(sessions)
    assert await sessions.heartbeat(TASK, guard=session["id"])
    assert await sessions.set_provider_session(TASK, "p", guard=session["id"])
    assert await sessions.delete(TASK, guard=session["id"])


@pytest.mark.parametrize("text", [*ODD_TEXTS.values(), FOREIGN_ID], ids=[*ODD_TEXTS, "an id"])
async def test_any_text_may_come_as_a_guard(sessions: SessionStore, text: str) -> None:
    await made(sessions)
    with pytest.raises(Conflict):
        await sessions.heartbeat(TASK, guard=text)


async def test_a_guard_of_a_task_without_session_finds_nothing(sessions: SessionStore) -> None:
    assert await sessions.heartbeat(TASK, guard=FOREIGN_ID) is None
    assert not await sessions.set_provider_session(TASK, "p", guard=FOREIGN_ID)
    assert not await sessions.delete(TASK, guard=FOREIGN_ID)


async def test_a_late_call_by_id_never_reaches_the_next_session_of_the_task(
    store: Store, sessions: SessionStore
) -> None:
    first, second = await made(sessions), await made(sessions)
    late = Target.id(first["id"])
    assert await sessions.heartbeat(late) is None
    assert not await sessions.set_provider_session(late, "p")
    assert not await sessions.request_stop(late)
    assert not await sessions.delete(late)
    assert await sessions.get(TASK) == second
    assert len(await told(store)) == 3


# --- provider session, stop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["task", "id"])
async def test_a_provider_session_is_noted_without_renewing(store: Store, sessions: SessionStore, kind: str) -> None:
    session = await made(sessions)
    target = TASK if kind == "task" else Target.id(session["id"])
    await advance(store, 60)
    before = await sessions.get(TASK)
    assert before is not None
    assert await sessions.set_provider_session(target, "p-1")
    assert await sessions.get(TASK) == {**before, "providerSessionId": "p-1"}
    (event,) = await told(store, "session.updated")
    assert event["session"] == {**before, "providerSessionId": "p-1"}
    assert event["reason"] is None


async def test_the_same_provider_session_twice_is_one_event_and_another_is_a_second(
    store: Store, sessions: SessionStore
) -> None:
    await made(sessions)
    for provider in ("p-1", "p-1", "p-2", "p-2", "p-1"):
        assert await sessions.set_provider_session(TASK, provider)
    updates = await told(store, "session.updated")
    assert [event["session"]["providerSessionId"] for event in updates] == ["p-1", "p-2", "p-1"]


@pytest.mark.parametrize("kind", ["task", "id"])
async def test_a_run_learns_from_its_next_heartbeat_that_it_shall_stop(
    store: Store, sessions: SessionStore, kind: str
) -> None:
    session = await made(sessions)
    target = TASK if kind == "task" else Target.id(session["id"])
    assert await sessions.request_stop(target)
    for _ in range(2):
        beat = await sessions.heartbeat(TASK)
        assert beat
        assert beat.stop_requested
    (event,) = await told(store, "session.updated")
    assert event["session"]["stopRequestedAt"] == event["at"]


async def test_asking_twice_to_stop_is_one_event_and_keeps_the_first_time(store: Store, sessions: SessionStore) -> None:
    await made(sessions)
    assert await sessions.request_stop(TASK)
    await advance(store, 60)
    before = await sessions.get(TASK)
    assert await sessions.request_stop(TASK)
    assert await sessions.get(TASK) == before
    assert len(await told(store, "session.updated")) == 1


# --- delete -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["task", "id"])
async def test_a_delete_ends_the_session_once_and_tells_it_whole(
    store: Store, sessions: SessionStore, kind: str
) -> None:
    session = await made(sessions, metadata={"branch": "main"}, taskDescription="all of it")
    target = TASK if kind == "task" else Target.id(session["id"])
    await sessions.set_provider_session(TASK, "p")
    await sessions.heartbeat(TASK, progress="done")
    last = await sessions.get(TASK)
    assert await sessions.delete(target)
    assert not await sessions.delete(target)
    end = (await told(store))[-1]
    assert (end["type"], end["reason"], end["session"]) == ("session.ended", "deleted", last)
    assert await ends(store) == [(session["id"], "deleted")]
    assert await audit(store) == 0


async def test_ending_a_session_does_not_take_the_task_from_another(store: Store, sessions: SessionStore) -> None:
    """Should the task's key ever point to another session than the one that ends."""
    first, second = await made(sessions, "t1"), await made(sessions, "t2")
    key = store.scripts.shards[0].prefix + "task:t1"
    await store.scripts.command("SET", key, second["id"], "KEEPTTL")
    assert await sessions.delete(Target.id(first["id"]))
    assert await store.scripts.command("GET", key) == second["id"].encode()
    await store.scripts.command("DEL", key)


async def test_of_many_deletes_at_once_one_succeeds(store: Store, sessions: SessionStore, open_pod: OpenPod) -> None:
    session = await made(sessions)
    async with open_pod() as pod:
        answers = await asyncio.gather(
            *(
                (store, pod)[number % 2].sessions.delete((TASK, Target.id(session["id"]))[number % 3 % 2])
                for number in range(50)
            )
        )
    assert sum(answers) == 1
    assert len(await ends(store)) == 1


@pytest.mark.parametrize(
    "text",
    [*ODD_TEXTS.values(), FOREIGN_ID, "ce3e8b3e-57a5-4e3e-8a3a-7f2f9a3ee2f1"],
    ids=[*ODD_TEXTS, "an id", "a version 4 id"],
)
@pytest.mark.parametrize("shards", [1, 4])
async def test_an_id_or_task_of_nobody_finds_nothing(store: Store, sessions: SessionStore, text: str) -> None:
    bystander = await made(sessions)
    for target in (Target.id(text), Target.task(text)):
        assert await sessions.get(target) is None
        assert await sessions.heartbeat(target, progress="p") is None
        assert not await sessions.set_provider_session(target, "p")
        assert not await sessions.request_stop(target)
        assert not await sessions.delete(target)
    assert await sessions.get(TASK) == bystander
    assert len(await told(store)) == 1


@pytest.mark.parametrize("shards", [1, 4])
async def test_two_namespaces_share_a_store_and_no_session(
    settings: Settings, sessions: SessionStore, open_pod: OpenPod
) -> None:
    session = await made(sessions)
    async with open_pod(namespace=settings.namespace + ".") as other:
        assert await other.sessions.get(TASK) is None
        assert await other.sessions.get(Target.id(session["id"])) is None
        assert not await other.sessions.delete(TASK)
        assert await other.listing.page(a_list(), 10) == ([], None)
    assert await sessions.get(TASK) == session
