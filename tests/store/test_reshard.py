"""Resharding: nothing is lost, doubled, ended or forgotten, wherever it is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from tests.audit import audit
from tests.clockwork import advance, outage
from tests.conftest import OpenPod
from tests.raw import RawKey, client_of, read_raw
from tests.store.wire import ODD_TEXTS, a_cleanup, a_list, a_run, some_events
from tracker.errors import (
    CannotReshard,
    Conflict,
    IdempotencyMismatch,
    PositionLost,
    SchemaMismatch,
    StoreFault,
    StoreUnavailable,
)
from tracker.models import CreateSession, Event, Session, Target
from tracker.store.agreement import agreement
from tracker.store.deliveries import Deliveries
from tracker.store.ids import shard_of_id, shard_of_text
from tracker.store.keys import Shard
from tracker.store.reshard import Clock, Resharded, merged, reshard
from tracker.store.scripts import Argument, Scripts
from tracker.store.store import Store

GROWTHS = pytest.mark.parametrize(
    ("backend", "shards", "more"),
    [
        ("memory", 1, 4),
        ("redis", 1, 4),
        ("redis", 4, 16),
        ("redis", 3, 7),
        ("cluster", 4, 16),
        ("cluster", 3, 7),
    ],
)
KEYS = 12
SLACK_MS = 10_000
"""Redis counts lives in real time, and a machine under load takes its own."""


class Made(NamedTuple):
    session: Session
    request: CreateSession
    key: str | None


async def fill(store: Store) -> list[Made]:
    """Sessions of all kinds: with a task, a key, both, neither, odd texts, and all that may be set."""
    requests: list[tuple[CreateSession, str | None]] = [
        *((a_run(f"t{number}", f"a{number % 3}"), None) for number in range(8)),
        *((a_run(None, "loner", triggerType="manual"), None) for _ in range(4)),
        *((a_run(text, text, metadata={"k": text}, taskDescription=text), None) for text in ODD_TEXTS.values()),
        *((a_run(f"keyed{number}", ttlSeconds=60), f"k{number}") for number in range(KEYS)),
        *((a_run(None, "keyed loner"), f"lone{number}") for number in range(KEYS)),
    ]
    made = [Made((await store.sessions.create(request, key)).session, request, key) for request, key in requests]
    for target in (Target.task("t1"), Target.task("keyed1"), Target.id(made[9].session["id"])):
        await store.sessions.set_provider_session(target, "p")
        await store.sessions.request_stop(target)
        await store.sessions.heartbeat(target, progress="on its way")
    await store.sessions.delete(Target.task("t7"))
    await store.sessions.create(a_run("t6", "a0", runtimeInstanceId="again"))
    gone = {made[6].session["id"], made[7].session["id"]}
    kept = [one for one in made if one.session["id"] not in gone]
    return [one._replace(session=await found(store, Target.id(one.session["id"]))) for one in kept]


async def found(store: Store, target: Target) -> Session:
    session = await store.sessions.get(target)
    assert session is not None, f"{target} is lost"
    return session


async def grow(open_pod: OpenPod, shards: int) -> Resharded:
    async with open_pod(shards=shards) as pod:
        return await reshard(pod.scripts)


async def listed(store: Store) -> list[bytes]:
    sessions, _ = await store.listing.page(a_list(), 1000)
    return sessions


async def told(store: Store, after: str | None = None) -> list[Event]:
    events: list[Event] = []
    while True:
        page = await store.feed.page(some_events(after=after, limit=7))
        events += page["events"]
        if not page["events"]:
            return events
        after = page["next"]


def hashes(raw: list[dict[str, RawKey]]) -> dict[str, RawKey]:
    return {name: key for keys in raw for name, key in keys.items() if name.startswith("session:")}


# --- what is so before is so after ------------------------------------------------------------------------------------


@GROWTHS
async def test_every_session_is_there_as_it_was(store: Store, open_pod: OpenPod, more: int) -> None:
    made = await fill(store)
    raw, page, stats, events = await read_raw(store), await listed(store), await store.stats(), await told(store)
    done = await grow(open_pod, more)
    assert (done.before, done.after, done.broken) == (len(store.scripts.shards), more, ())
    assert 0 < done.moved <= len(page)
    async with open_pod(shards=more) as pod:
        assert await listed(pod) == page
        assert {**await pod.stats(), "oldestSessionAgeSeconds": 0, "oldestHeartbeatAgeSeconds": 0} == {
            **stats,
            "oldestSessionAgeSeconds": 0,
            "oldestHeartbeatAgeSeconds": 0,
        }
        for session, request, _ in made:
            assert await found(pod, Target.id(session["id"])) == session
            if request.task_id:
                assert await found(pod, Target.task(request.task_id)) == session
        before, after = hashes(raw), hashes(await read_raw(pod))
        assert {name: key.content for name, key in after.items()} == {name: key.content for name, key in before.items()}
        for name, key in before.items():
            assert key.ttl - SLACK_MS < after[name].ttl <= key.ttl, name
        assert [event["session"] for event in await told(pod)] == [event["session"] for event in events]
        assert await audit(pod) == len(page)
        looked = await agreement(pod.scripts, mend=False)
        assert (looked.sessions, looked.findings, looked.uncounted) == (len(page), [], [])


@GROWTHS
@pytest.mark.parametrize("by", ["id", "task"])
async def test_every_call_finds_its_session(store: Store, open_pod: OpenPod, more: int, by: str) -> None:
    made = [one for one in await fill(store) if by == "id" or one.request.task_id]
    await grow(open_pod, more)
    async with open_pod(shards=more) as pod:
        targets = [
            Target.id(one.session["id"]) if by == "id" else Target.task(str(one.request.task_id)) for one in made
        ]
        for target, (session, _, _) in zip(targets, made, strict=True):
            beat = await pod.sessions.heartbeat(target, guard=session["id"], progress="after")
            assert beat is not None
            assert beat.stop_requested == (session["stopRequestedAt"] is not None)
            assert await pod.sessions.set_provider_session(target, "later")
            assert await pod.sessions.request_stop(target)
            assert await found(pod, target) == {
                **await found(pod, target),
                **{name: session[name] for name in ("id", "agentId", "taskId", "startedAt", "metadata")},
                "progress": "after",
                "providerSessionId": "later",
            }
        assert all((await pod.sessions.heartbeat_all([*targets, Target.task("nobody")])).values()) is False
        assert all((await pod.sessions.heartbeat_all(targets)).values())
        before = len(await listed(pod))
        for target, (session, _, _) in zip(targets, made, strict=True):
            with pytest.raises(Conflict):
                await pod.sessions.delete(target, guard="0199b1f2-6c1e-7000-9a55-0c3f3f8f2a10")
            assert await pod.sessions.delete(target, guard=session["id"])
            assert await pod.sessions.get(target) is None
            assert not await pod.sessions.delete(target)
        assert await audit_ended(pod) == before - len(made)


async def audit_ended(pod: Store) -> int:
    """Of a store in which sessions that had moved have ended: their ids are still forwarded, to nobody."""
    assert (await agreement(pod.scripts, mend=False)).findings == []
    return await audit(pod)


@GROWTHS
async def test_tasks_still_have_one_session_each(store: Store, open_pod: OpenPod, more: int) -> None:
    made = [one for one in await fill(store) if one.request.task_id]
    await grow(open_pod, more)
    async with open_pod(shards=more) as pod:
        before = await audit(pod)
        for session, request, _ in made:
            with pytest.raises(Conflict) as refused:
                await pod.sessions.create(a_run(request.task_id, "somebody else"))
            assert refused.value.session == session
            created = await pod.sessions.create(a_run(request.task_id, session["agentId"]))
            assert created.outcome == "created"
            assert await pod.sessions.get(Target.id(session["id"])) is None
        assert await audit_ended(pod) == before
        assert (await pod.stats())["ended"]["replaced"] == len(made) + 1


@GROWTHS
async def test_cleanups_end_what_they_are_meant_to(store: Store, open_pod: OpenPod, more: int) -> None:
    made = await fill(store)
    await grow(open_pod, more)
    async with open_pod(shards=more) as pod:
        before = await audit(pod)
        loners = [one for one in made if one.session["agentId"] == "loner"]
        assert await pod.sweeper.cleanup(a_cleanup(agentId="loner")) == len(loners) == 4
        await advance(pod, 61)
        assert await pod.sweeper.sweep() == KEYS, "those with a TTL of a minute"
        assert await audit_ended(pod) == before - 4 - KEYS
        await advance(pod, 3600)
        assert await pod.sweeper.sweep() == before - 4 - KEYS
        assert await audit_ended(pod) == 0


@pytest.mark.parametrize("shards", [1])
async def test_old_ids_lead_on_through_a_second_reshard(store: Store, open_pod: OpenPod) -> None:
    made = await fill(store)
    await grow(open_pod, 4)
    async with open_pod(shards=4) as pod:
        made += [
            Made((await pod.sessions.create(request)).session, request, None)
            for request in (a_run(f"between{number}") for number in range(8))
        ]
        await pod.sessions.delete(Target.task("t1"))
        made = [one for one in made if one.request.task_id != "t1"]
        everything = await listed(pod)
    await grow(open_pod, 16)
    async with open_pod(shards=16) as pod:
        assert await listed(pod) == everything
        for session, request, key in made:
            assert await found(pod, Target.id(session["id"])) == session
            assert await pod.sessions.heartbeat(Target.id(session["id"]))
            if key:
                again = await pod.sessions.create(request, key)
                assert (again.outcome, again.session["id"]) == ("repeated", session["id"])
        assert await audit(pod) == len(everything)


@pytest.mark.parametrize("shards", [2])
async def test_a_session_that_comes_home_needs_no_forward(store: Store, open_pod: OpenPod) -> None:
    """From 2 to 3 shards and on to 4: a task that was in the second shard may well come back to it."""
    tasks = [f"t{number}" for number in range(40)]
    ids = [(await store.sessions.create(a_run(task))).session["id"] for task in tasks]
    await grow(open_pod, 3)
    async with open_pod(shards=3) as pod:
        away = {name for keys in await read_raw(pod) for name in keys if name.startswith("moved:")}
        assert await audit(pod) == 40
    await grow(open_pod, 4)
    async with open_pod(shards=4) as pod:
        raw = await read_raw(pod)
        still_away = {name for keys in raw for name in keys if name.startswith("moved:")}
        home = {i for i in ids if f"session:{i}" in raw[shard_of_id(i, 4) or 0]}
        assert home & {name.removeprefix("moved:") for name in away}, "this test needs some that come home"
        assert still_away == {f"moved:{session_id}" for session_id in set(ids) - home}
        assert await audit(pod) == 40


# --- Idempotency-Keys -------------------------------------------------------------------------------------------------


@GROWTHS
async def test_a_repeated_create_is_answered_with_the_first_session(store: Store, open_pod: OpenPod, more: int) -> None:
    made = [one for one in await fill(store) if one.key]
    lives = [key.ttl for keys in await read_raw(store) for name, key in keys.items() if name.startswith("idem:")]
    await grow(open_pod, more)
    async with open_pod(shards=more) as pod:
        records = [key.ttl for keys in await read_raw(pod) for name, key in keys.items() if name.startswith("idem:")]
        assert min(lives) - SLACK_MS < min(records) <= max(records) <= max(lives)
        before = await audit(pod)
        for session, request, key in made:
            await pod.sessions.heartbeat(Target.id(session["id"]), progress="since")
            again = await pod.sessions.create(request, key)
            assert again.outcome == "repeated"
            assert (again.session["id"], again.session["progress"]) == (session["id"], "since")
        assert await audit(pod) == before


@GROWTHS
async def test_a_key_still_means_one_body(store: Store, open_pod: OpenPod, more: int) -> None:
    """Also where the other body's task, or none, would lead to another shard than the first's."""
    made = [one for one in await fill(store) if one.key]
    await grow(open_pod, more)
    async with open_pod(shards=more) as pod:
        before = await audit(pod)
        for _, _, key in made:
            for other in (a_run(None, "other"), *(a_run(f"other{number}") for number in range(4))):
                with pytest.raises(IdempotencyMismatch):
                    await pod.sessions.create(other, key)
        assert await audit(pod) == before


@pytest.mark.parametrize("backend", ["redis"])
@pytest.mark.parametrize("shards", [3])
async def test_where_a_record_and_its_key_come_together_the_record_stays(store: Store, open_pod: OpenPod) -> None:
    """They were in two shards before; whichever comes first."""
    names = [(f"t{task}", f"k{key}") for task in range(40) for key in range(40)]
    pairs = [
        (task, key)
        for task, key in names
        if shard_of_text(task, 3) != shard_of_text(key, 3) and shard_of_text(task, 7) == shard_of_text(key, 7)
    ]
    chosen = {task: (task, key) for task, key in {key: (task, key) for task, key in pairs}.values()}
    assert len(chosen) > 3
    for task, key in chosen.values():
        await store.sessions.create(a_run(task), key)
    await grow(open_pod, 7)
    async with open_pod(shards=7) as pod:
        for task, key in chosen.values():
            assert (await pod.sessions.create(a_run(task), key)).outcome == "repeated"
        assert await audit(pod) == len(chosen)


@pytest.mark.parametrize("backend", ["redis"])
@pytest.mark.parametrize("shards", [2])
async def test_where_a_claim_and_its_task_come_together_the_create_that_got_no_answer_can_be_tried_again(
    store: Store, open_pod: OpenPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it meets a conflict: then no session came of the key, and it may mean another body."""
    pairs = [
        (f"t{task}", f"k{key}")
        for task in range(40)
        for key in range(40)
        if shard_of_text(f"t{task}", 2) != shard_of_text(f"k{key}", 2)
        and shard_of_text(f"t{task}", 3) == shard_of_text(f"k{key}", 3)
    ]
    task, key = pairs[0]
    taken, other_key = next((other, other_key) for other, other_key in pairs if other != task and other_key != key)
    await store.sessions.create(a_run(taken, "a2"))

    async def fail(*call: Any) -> Any:
        raise StoreUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(store.sessions, "_create", fail)
        for pair in ((task, key), (taken, other_key)):
            with pytest.raises(StoreUnavailable):
                await store.sessions.create(a_run(pair[0]), pair[1])
    await grow(open_pod, 3)
    async with open_pod(shards=3) as pod:
        first = await pod.sessions.create(a_run(task), key)
        again = await pod.sessions.create(a_run(task), key)
        assert (first.outcome, again.outcome) == ("created", "repeated")
        assert again.session == first.session
        with pytest.raises(IdempotencyMismatch):
            await pod.sessions.create(a_run("another"), key)
        with pytest.raises(Conflict):
            await pod.sessions.create(a_run(taken), other_key)
        assert (await pod.sessions.create(a_run("another"), other_key)).outcome == "created"
        await audit(pod)


async def stop_at(scripts: Scripts, script: str) -> None:
    """A reshard that is interrupted there."""

    async def interrupted(name: str, call: Call) -> Any:
        if name == script:
            raise Interrupted
        return await call()

    intercept(scripts, interrupted)
    with pytest.raises(Interrupted):
        await reshard(scripts)


@pytest.mark.parametrize("shards", [1])
async def test_of_two_records_for_a_key_the_whole_one_stays_or_the_one_that_lives_longer(
    store: Store, open_pod: OpenPod
) -> None:
    await fill_little(store)
    async with open_pod(shards=4) as pod:
        await stop_at(pod.scripts, "locate")
        shard = pod.scripts.shards[3]
        client, record = await client_of(pod, 3), f"{shard.prefix}idem:k"

        async def call(script: str, *operation: Argument) -> bytes:
            ((status, *_),) = await pod.scripts._run(script, shard, ("1>4", len(operation), *operation))
            return bytes(status)

        async def arrive(life: int, **fields: str) -> Any:
            flat = [part for pair in fields.items() for part in pair]
            assert await call("import", "idem", "k", life, "", *flat) == b"imported"
            return await client.hgetall(record)

        whole = {b"fingerprint": b"f", b"id": b"i", b"agent": b"a"}
        assert await arrive(50_000, fingerprint="f") == {b"fingerprint": b"f"}
        assert await arrive(90_000, fingerprint="f", id="i", agent="a") == whole
        assert await arrive(60_000, fingerprint="f") == whole
        assert 60_000 < await client.pttl(record) <= 90_000
        assert await arrive(30_000, fingerprint="g", id="j") == whole
        assert await call("depart", "idem", "k", "") == b"gone", "what had been exported was another"
        assert await arrive(200_000, fingerprint="g") == {b"fingerprint": b"g"}
        assert await call("depart", "idem", "k", "") == b"departed"
        assert not await client.exists(record)


# --- events and webhooks ----------------------------------------------------------------------------------------------


@GROWTHS
async def test_readers_go_on_where_they_were(store: Store, open_pod: OpenPod, more: int) -> None:
    made = await fill(store)
    begin = (await store.feed.page(some_events(limit=5)))["next"]
    rest = [event["session"]["id"] for event in await told(store, begin)]
    last = (await store.feed.page(some_events(after=begin, limit=1000)))["next"]
    await grow(open_pod, more)
    async with open_pod(shards=more) as pod:
        assert await told(pod, last) == [], "nobody is told that sessions have moved"
        for session, _, _ in made:
            await pod.sessions.delete(Target.id(session["id"]))
        ended = [event["session"]["id"] for event in await told(pod, last)]
        # In one millisecond something may happen in several shards.
        assert sorted(ended) == sorted(session["id"] for session, _, _ in made)
        assert [event["session"]["id"] for event in await told(pod, begin)] == rest + ended
        for event in await told(pod, last):
            assert event["type"] == "session.ended"
        # A shard that has come since had nothing then: once it may no longer hold all it ever had, some may be missed.
        pod.scripts.feed_length = 1
        with pytest.raises(PositionLost):
            await told(pod, last)


@GROWTHS
async def test_webhooks_hear_of_what_waited_and_of_all_that_comes(store: Store, open_pod: OpenPod, more: int) -> None:
    def deliveries(pod: Store) -> Deliveries:
        return Deliveries(pod.scripts, ["session.created", "session.ended"], lease_seconds=60)

    await deliveries(store).take(1)
    made = await fill(store)
    taken, _ = await deliveries(store).take(1)
    mine = {(delivery.shard, delivery.id) for delivery in taken}
    assert mine
    await grow(open_pod, more)
    async with open_pod(shards=more) as pod:
        await pod.sessions.delete(Target.id(made[0].session["id"]))
        for session, _, _ in made[1:]:
            await pod.sessions.delete(Target.id(session["id"]))
        hooks = deliveries(pod)
        rest, more_to_come = await hooks.take(1000)
        while more_to_come:
            some, more_to_come = await hooks.take(1000)
            rest += some
        heard = [delivery.event for delivery in [*taken, *rest]]
        assert len({event["id"] for event in heard}) == len(heard)
        expected = [(e["type"], e["session"]["id"]) for e in await told(pod) if e["type"] != "session.updated"]
        assert sorted((event["type"], event["session"]["id"]) for event in heard) == sorted(expected)


@pytest.mark.parametrize("shards", [2])
async def test_a_store_without_webhooks_gets_none(store: Store, open_pod: OpenPod) -> None:
    await store.sessions.create(a_run())
    await grow(open_pod, 4)
    async with open_pod(shards=4) as pod:
        assert [number for number, keys in enumerate(await read_raw(pod)) if "events" in keys] == [
            number for number, keys in enumerate(await read_raw(store)) if "events" in keys
        ]


# --- life and death ---------------------------------------------------------------------------------------------------


@GROWTHS
@pytest.mark.settings(ttl_seconds=60)
async def test_nobody_expires_for_the_time_that_it_took(store: Store, open_pod: OpenPod, more: int) -> None:
    await fill(store)
    for number in range(5):
        await store.sessions.create(a_run(f"dead{number}", ttlSeconds=1))
    await advance(store, 2)
    await store.sweeper.pulse()
    live = len(await listed(store))
    await outage(store, 50)
    await grow(open_pod, more)
    async with open_pod(shards=more) as pod:
        await outage(pod, 40)
        assert len(await listed(pod)) == live
        assert await pod.sweeper.sweep() == 5, "whoever was dead before"
        await advance(pod, 50)
        assert await pod.sweeper.sweep() == 0, "the outage is made good"
        await advance(pod, 20)
        assert await pod.sweeper.sweep() == live
        assert await audit(pod) == 0


@pytest.mark.parametrize("shards", [3])
@pytest.mark.settings(ttl_seconds=60)
async def test_a_hold_goes_along(store: Store, open_pod: OpenPod) -> None:
    """One that is in force where a session was is in force where it is now, though that shard had none."""
    await fill(store)
    await store.sweeper.pulse()
    live = len(await listed(store))
    await outage(store, 50)
    await store.sweeper.pulse()
    for shard in store.scripts.shards[1:]:
        await (await client_of(store, shard.number)).hdel(shard.declared[0], "held", "hold_end", "resumed")
    await outage(store, 5)
    await grow(open_pod, 7)
    async with open_pod(shards=7) as pod:
        await pod.sweeper.pulse()
        await advance(pod, 40)
        assert await pod.sweeper.sweep() == 0
        assert len(await listed(pod)) == live


@pytest.mark.parametrize(
    ("clocks", "one"),
    [
        ([], Clock(None, None, None, None, None)),
        ([Clock(None, None, None, None, None)], Clock(None, None, None, None, None)),
        ([Clock(9, 3, None, None, None), Clock(5, 4, None, None, None)], Clock(5, 4, None, None, None)),
        ([Clock(9, 3, 1, 2, 8), Clock(5, 4, None, None, None)], Clock(5, 4, None, None, None)),
        ([Clock(9, 3, 1, 2, 10), Clock(5, 4, None, None, None)], Clock(5, 4, 1, 2, 10)),
        ([Clock(9, 3, 2, 3, 10), Clock(5, 4, 1, 4, 9)], Clock(5, 4, 1, 4, 10)),
    ],
)
def test_of_several_clocks_comes_one_by_which_nobody_expires_sooner(clocks: list[Clock], one: Clock) -> None:
    assert merged(clocks) == one


@pytest.mark.parametrize("shards", [2])
async def test_an_id_is_forwarded_as_long_as_somebody_asks_for_it(store: Store, open_pod: OpenPod) -> None:
    await fill(store)
    await grow(open_pod, 4)
    async with open_pod(shards=4) as pod:
        raw = await read_raw(pod)
        shard, name = next((n, name) for n, keys in enumerate(raw) for name in keys if name.startswith("moved:"))
        client, key = await client_of(pod, shard), pod.scripts.shards[shard].prefix + name
        month = 30 * 86_400_000
        assert month - SLACK_MS < await client.pttl(key) <= month
        await client.pexpire(key, month // 3)
        await found(pod, Target.id(name.removeprefix("moved:")))
        assert month - SLACK_MS < await client.pttl(key) <= month


# --- interrupted ------------------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    pass


Call = Callable[[], Awaitable[Any]]


def intercept(scripts: Scripts, around: Callable[[str, Call], Awaitable[Any]]) -> None:
    """From now on a reshard by these scripts has something around each: what knows its name, and may let it run."""
    rearrange = scripts.rearrange

    async def intercepted(name: str, shard: Shard, *arguments: Argument) -> Any:
        return await around(name, lambda: rearrange(name, shard, *arguments))

    scripts.rearrange = intercepted  # type: ignore[method-assign]


class Interrupting:
    """Lets so many scripts run, then none any more; the last one's reply is lost, or it is not even sent."""

    def __init__(self, scripts: Scripts, calls: int, *, sent: bool) -> None:
        self.made = 0
        self._calls = calls
        self._sent = sent
        intercept(scripts, self._around)

    async def _around(self, name: str, call: Call) -> Any:
        self.made += 1
        if self.made > self._calls or (self.made == self._calls and not self._sent):
            raise Interrupted
        reply = await call()
        if self.made == self._calls:
            raise Interrupted
        return reply


async def fill_little(store: Store) -> None:
    """Little of each kind, for there are many steps at which to interrupt."""
    for number in range(4):
        await store.sessions.create(a_run(f"t{number}", f"a{number % 2}"))
        await store.sessions.create(a_run(f"keyed{number}"), f"k{number}")
    await store.sessions.create(a_run(None), "lone1")
    await store.sessions.create(a_run(None), "lone2")
    await store.sessions.create(a_run(None))


@pytest.mark.parametrize(("shards", "more"), [(1, 4), (2, 5)])
async def test_wherever_it_is_interrupted_another_run_finishes_it(
    store: Store, open_pod: OpenPod, namespace: str, shards: int, more: int, backend: str
) -> None:
    # At each step at least on one backend; the parity tells whether the last reply is lost, or nothing is sent.
    calls, last, strides = 0, False, {"memory": 5, "redis": 1 if shards == 1 else 3, "cluster": 7}
    while not last:
        calls += strides[backend]
        own = f"{namespace}-{calls}"
        async with open_pod(namespace=own) as old:
            await fill_little(old)
            everything = await listed(old)
        async with open_pod(namespace=own, shards=more) as pod:
            interrupting = Interrupting(pod.scripts, calls, sent=calls % 2 == 0)
            with suppress(Interrupted):
                await reshard(pod.scripts)
            last = interrupting.made < calls
        async with open_pod(namespace=own, shards=more) as pod:
            if not last:
                await untouchable(open_pod, own, (shards, more))
            await reshard(pod.scripts)
            assert await listed(pod) == everything, f"after {calls} calls"
            assert await audit(pod) == len(everything) == 11
            assert (await agreement(pod.scripts, mend=False)).findings == []
            for number in range(4):
                assert (await pod.sessions.create(a_run(f"keyed{number}"), f"k{number}")).outcome == "repeated"
                with pytest.raises(IdempotencyMismatch):
                    await pod.sessions.create(a_run("another"), f"k{number}")
            for key in ("lone1", "lone2"):
                session = (await pod.sessions.create(a_run(None), key)).session
                await pod.sessions.heartbeat(Target.id(session["id"]), progress="since")
                assert (await pod.sessions.create(a_run(None), key)).session["progress"] == "since"
    assert calls > 25


async def untouchable(open_pod: OpenPod, namespace: str, counts: tuple[int, ...]) -> None:
    """No pod serves now, whichever number it has: unless nothing, or all, has been done by then."""
    refused = 0
    for shards in counts:
        async with open_pod(namespace=namespace, shards=shards) as pod:
            try:
                await pod.sessions.get(Target.task("t1"))
            except SchemaMismatch:
                refused += 1
    assert refused >= len(counts) - 1


@GROWTHS
async def test_no_pod_serves_in_the_middle(store: Store, open_pod: OpenPod, shards: int, more: int) -> None:
    await fill(store)
    async with open_pod(shards=more) as pod:
        Interrupting(pod.scripts, 2 * shards + more, sent=True)
        with pytest.raises(Interrupted):
            await reshard(pod.scripts)
    for count in (shards, more):
        async with open_pod(shards=count) as pod:
            for call in (pod.inspect(), pod.sessions.get(Target.task("t1")), pod.sweeper.pulse(), pod.sweeper.sweep()):
                with pytest.raises(SchemaMismatch, match=f"finish it: tracker reshard --to {more}$"):
                    await call
    # One that was up all the while notices when it sweeps.
    for shard in store.scripts.shards:
        with pytest.raises(SchemaMismatch):
            await store.scripts.enroll_one(shard)
    async with open_pod(shards=2 * more) as pod:
        with pytest.raises(SchemaMismatch, match=f"tracker reshard --to {more}$"):
            await reshard(pod.scripts)


@pytest.mark.parametrize("shards", [2])
async def test_a_session_outlives_an_interruption_however_long(store: Store, open_pod: OpenPod) -> None:
    """It is in both shards then: its one end event comes once, with all that is known of it. For one that had not been
    moved yet the grace is over, as ever.
    """
    await fill_little(store)
    await store.sweeper.pulse()
    await outage(store, 60)
    async with open_pod(shards=4) as pod:
        await stop_at(pod.scripts, "depart")
        await outage(pod, 3 * 3600)
    await grow(open_pod, 4)
    async with open_pod(shards=4) as pod:
        await pod.sweeper.sweep()
        await advance(pod, 31 * 60)
        await pod.sweeper.sweep()
        ended = [event["session"] for event in await told(pod) if event["type"] == "session.ended"]
        assert len({session["id"] for session in ended}) == len(ended) == 11
        assert {session["agentId"] for session in ended} > {""}


@pytest.mark.parametrize("shards", [1])
async def test_one_that_was_left_behind_can_do_no_harm(store: Store, open_pod: OpenPod) -> None:
    """Two at once finish it together; one that wakes up when all is over is refused."""
    await fill(store)
    everything = await listed(store)
    async with open_pod(shards=4) as late, open_pod(shards=4) as pod:
        overtaking = asyncio.Lock()

        async def overtaken(name: str, call: Call) -> Any:
            if name == "import":
                async with overtaking:
                    await reshard(pod.scripts)
                    await pod.sessions.delete(Target.task("t1"))
            return await call()

        intercept(late.scripts, overtaken)
        with pytest.raises(StoreFault, match="laid out otherwise: 4"):
            await reshard(late.scripts)
        assert await audit(pod) == len(everything) - 1


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [2])
async def test_while_a_pod_is_there_it_refuses(store: Store, open_pod: OpenPod) -> None:
    await fill_little(store)
    await store.sweeper.pulse()
    before = await read_raw(store)
    with pytest.raises(CannotReshard, match=r"^stop the pods first: one was there \d+\.\d s ago$"):
        await grow(open_pod, 4)
    assert [keys.keys() for keys in await read_raw(store)] == [keys.keys() for keys in before]
    await outage(store, 3)
    await grow(open_pod, 4)


@pytest.mark.parametrize("shards", [2])
async def test_one_pod_that_is_there_in_a_single_shard_is_enough(store: Store, open_pod: OpenPod) -> None:
    await store.sweeper.pulse()
    await outage(store, 60)
    await store.sweeper._pulse_in_turn(store.scripts.shards[1])
    with pytest.raises(CannotReshard, match="stop the pods first"):
        await grow(open_pod, 4)


@pytest.mark.parametrize("shards", [2])
async def test_with_a_pod_that_comes_meanwhile_it_is_not_finished(store: Store, open_pod: OpenPod) -> None:
    """One that had looked at the layout just before, or was frozen: what it has written is moved by the next run."""
    await fill_little(store)
    async with open_pod(shards=4) as pod:

        async def with_a_pod(name: str, call: Call) -> Any:
            if name == "forward":
                await store.sweeper.pulse()
                await store.sessions.create(a_run("late"))
            return await call()

        intercept(pod.scripts, with_a_pod)
        with pytest.raises(CannotReshard):
            await reshard(pod.scripts)
    await outage(store, 60)
    await grow(open_pod, 4)
    async with open_pod(shards=4) as pod:
        assert await found(pod, Target.task("late"))
        assert (await agreement(pod.scripts, mend=False)).findings == []


@pytest.mark.parametrize("shards", [2])
async def test_what_a_pod_made_that_slept_through_it_is_told(store: Store, open_pod: OpenPod) -> None:
    await fill_little(store)
    await grow(open_pod, 4)
    tasks = [f"late{number}" for number in range(20)]
    for task in tasks:
        await store.sessions.create(a_run(task))
    async with open_pod(shards=4) as pod:
        looked = await agreement(pod.scripts, mend=True)
        misplaced = [task for task in tasks if shard_of_text(task, 2) != shard_of_text(task, 4)]
        assert misplaced
        assert sorted(looked.findings) == sorted(
            (shard_of_text(task, 2), "misplaced", f"task:{task}", False) for task in misplaced
        )
        for task in tasks:
            assert (await pod.sessions.get(Target.task(task)) is None) == (task in misplaced)
    # Its sweeps look at the layout again, and end this.
    with pytest.raises(SchemaMismatch):
        await store.scripts.enroll_one(store.scripts.shards[0])
    with pytest.raises(SchemaMismatch):
        await store.sessions.create(a_run("later"))


@pytest.mark.parametrize(
    ("shards", "to", "says"), [(4, 2, "^the store has 4 shards, and can only get more$"), (4, 1, "can only get more")]
)
async def test_a_store_does_not_shrink(store: Store, open_pod: OpenPod, to: int, says: str) -> None:
    await fill_little(store)
    with pytest.raises(CannotReshard, match=says):
        await grow(open_pod, to)
    assert await audit(store) == 11


@pytest.mark.parametrize("shards", [4])
async def test_with_as_many_as_it_has_nothing_happens(store: Store, open_pod: OpenPod) -> None:
    await fill_little(store)
    assert await grow(open_pod, 4) == Resharded(4, 4)
    assert await audit(store) == 11


async def test_a_namespace_that_nobody_has_used_is_not_resharded(store: Store, open_pod: OpenPod) -> None:
    with pytest.raises(CannotReshard, match="no tracker has ever used this namespace"):
        await grow(open_pod, 4)
    assert await read_raw(store) == [{}]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("version", "2", "version 2"), ("shards", "x", "'x' shards"), ("shards", "", "'' shards")],
)
async def test_another_layout_is_not_touched(
    store: Store, open_pod: OpenPod, field: str, value: str, says: str
) -> None:
    await fill_little(store)
    shard = store.scripts.shards[0]
    await (await client_of(store)).hset(f"{shard.prefix}schema", field, value)
    with pytest.raises(SchemaMismatch, match=says):
        await grow(open_pod, 4)


@pytest.mark.parametrize("shards", [2])
async def test_what_is_no_whole_session_stays_and_is_told(store: Store, open_pod: OpenPod) -> None:
    await fill_little(store)
    shard = store.scripts.shards[0]
    client = await client_of(store)
    await client.hset(f"{shard.prefix}session:torn", "agent", "a1")
    await client.set(f"{shard.prefix}session:other", "text")
    done = await grow(open_pod, 4)
    assert sorted(done.broken) == [f"{shard.prefix}session:other", f"{shard.prefix}session:torn"]
    assert await client.exists(f"{shard.prefix}session:torn", f"{shard.prefix}session:other") == 2


@pytest.mark.parametrize("shards", [2])
async def test_a_session_that_no_index_knows_moves_as_well(store: Store, open_pod: OpenPod) -> None:
    await fill_little(store)
    for shard in store.scripts.shards:
        client = await client_of(store, shard.number)
        for name in ("sessions", "deadlines", "agents", "triggers", "agent:a0", "agent:a1"):
            await client.delete(shard.prefix + name)
    await grow(open_pod, 7)
    async with open_pod(shards=7) as pod:
        await agreement(pod.scripts, mend=True)
        assert await audit(pod) == 11
        assert (await pod.sessions.get(Target.task("t1"))) is not None


@pytest.mark.parametrize("shards", [1])
async def test_where_a_key_is_in_the_way_it_says_which_and_can_go_on(store: Store, open_pod: OpenPod) -> None:
    await fill_little(store)
    async with open_pod(shards=4) as pod:
        client, wrong = await client_of(pod, 2), pod.scripts.shards[2].prefix + "sessions"
        await client.set(wrong, "text")
        with pytest.raises((StoreFault, StoreUnavailable), match="WRONGTYPE"):
            await reshard(pod.scripts)
        await client.delete(wrong)
        await reshard(pod.scripts)
        assert await audit(pod) == 11
