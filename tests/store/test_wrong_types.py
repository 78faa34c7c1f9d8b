"""Keys of the wrong type, at each position of each script: refused as a whole, or not looked at. Never half a write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.clockwork import advance
from tests.conftest import OpenPod
from tests.raw import RawKey, read_raw
from tests.store.wire import a_cleanup, a_list, a_run, some_events
from tracker.errors import StoreFault
from tracker.models import Target
from tracker.store.store import Store

TASK = Target.task("t1")

Call = Callable[[Store, str], Awaitable[Any]]
"""What to call, given the id of the live session of task t1 and agent a1."""

CALLS: dict[str, Call] = {
    "create": lambda store, _: store.sessions.create(a_run("t2", "a1")),
    "create with key": lambda store, _: store.sessions.create(a_run("t2", "a1"), "key"),
    "create, supersede": lambda store, _: store.sessions.create(a_run("t1", "a1")),
    "create, replace another's": lambda store, _: store.sessions.create(a_run("t1", "a2", onConflict="replace")),
    "create, reuse": lambda store, _: store.sessions.create(a_run("t1", "a1", onConflict="reuse")),
    "create, reuse with key": lambda store, _: store.sessions.create(a_run("t1", "a1", onConflict="reuse"), "key"),
    "create over an expired one": lambda store, _: store.sessions.create(a_run("t9", "a1")),
    "get by task": lambda store, _: store.sessions.get(TASK),
    "get by id": lambda store, session_id: store.sessions.get(Target.id(session_id)),
    "heartbeat by task": lambda store, _: store.sessions.heartbeat(TASK, progress="p"),
    "heartbeat by id": lambda store, session_id: store.sessions.heartbeat(Target.id(session_id)),
    "provider by task": lambda store, _: store.sessions.set_provider_session(TASK, "p"),
    "provider by id": lambda store, session_id: store.sessions.set_provider_session(Target.id(session_id), "p"),
    "stop by task": lambda store, _: store.sessions.request_stop(TASK),
    "stop by id": lambda store, session_id: store.sessions.request_stop(Target.id(session_id)),
    "delete by task": lambda store, _: store.sessions.delete(TASK),
    "delete by id": lambda store, session_id: store.sessions.delete(Target.id(session_id)),
    "sweep": lambda store, _: store.sweeper.sweep(),
    "cleanup of an agent": lambda store, _: store.sweeper.cleanup(a_cleanup(agentId="a1")),
    "cleanup by runtime": lambda store, _: store.sweeper.cleanup(a_cleanup(runtimeInstanceId="r")),
    "list": lambda store, _: store.listing.page(a_list(), 10),
    "list of an agent": lambda store, _: store.listing.page(a_list(agentId="a1"), 10),
    "events": lambda store, _: store.feed.page(some_events()),
    "stats": lambda store, _: store.stats(),
    "inspect": lambda store, _: store.inspect(),
}

EVERYWHERE = {"clock"}
WRITES = EVERYWHERE | {"sessions", "deadlines", "agents", "triggers", "counters", "events"}

NEEDED: dict[str, set[str]] = {
    "create": WRITES | {"agent:a1", "task:t2"},
    "create with key": WRITES | {"agent:a1", "task:t2", "idem:key"},
    "create, supersede": WRITES | {"agent:a1", "task:t1", "session"},
    "create, replace another's": WRITES | {"agent:a1", "agent:a2", "task:t1", "session"},
    "create, reuse": WRITES | {"agent:a1", "task:t1", "session"},
    "create, reuse with key": WRITES | {"agent:a1", "task:t1", "session", "idem:key"},
    "create over an expired one": WRITES | {"agent:a1", "agent:a9", "task:t9", "session of t9"},
    "get by task": EVERYWHERE | {"task:t1", "session"},
    "get by id": EVERYWHERE | {"session"},
    "heartbeat by task": EVERYWHERE | {"deadlines", "task:t1", "session"},
    "heartbeat by id": EVERYWHERE | {"deadlines", "session"},
    "provider by task": EVERYWHERE | {"events", "task:t1", "session"},
    "provider by id": EVERYWHERE | {"events", "session"},
    "stop by task": EVERYWHERE | {"events", "task:t1", "session"},
    "stop by id": EVERYWHERE | {"events", "session"},
    "delete by task": WRITES | {"agent:a1", "task:t1", "session"},
    "delete by id": WRITES | {"agent:a1", "task:t1", "session"},
    "sweep": WRITES | {"agent:a9", "task:t9", "session of t9"},
    "cleanup of an agent": WRITES | {"agent:a1", "task:t1", "session"},
    "cleanup by runtime": WRITES | {"agent:a1", "task:t1", "session", "session of t9"},
    "list": EVERYWHERE | {"sessions", "session", "session of t9"},
    "list of an agent": EVERYWHERE | {"agent:a1", "session"},
    "events": {"events"},
    "stats": EVERYWHERE | {"sessions", "deadlines", "agents", "triggers", "counters", "session", "session of t9"},
    "inspect": EVERYWHERE | {"schema"},
}
"""The keys without which a call cannot do its work. With any other of the wrong type it goes on."""

KEYS = sorted(
    WRITES
    | {"schema", "agent:a1", "agent:a2", "agent:a9", "task:t1", "task:t2", "task:t9"}
    | {"idem:key", "session", "session of t9"}
)


async def prepare(store: Store) -> str:
    """t1 is live; t9, of agent a9, has expired and nobody has swept it. The id of t1's session."""
    await store.sessions.create(a_run("t9", "a9", ttlSeconds=60))
    await advance(store, 61)
    session = (await store.sessions.create(a_run("t1", "a1", runtimeInstanceId="r"))).session
    return session["id"]


async def plant(store: Store, name: str, session_id: str) -> str:
    """Puts a key of a type that no script can use there; its name."""
    (raw,) = await read_raw(store)
    if name == "session":
        name = "session:" + session_id
    elif name == "session of t9":
        name = "session:" + raw["task:t9"].content.decode()
    key = store.scripts.shards[0].prefix + name
    await store.scripts.command("DEL", key)
    await store.scripts.command("RPUSH", key, "planted")
    return name


async def dump(store: Store) -> dict[str, RawKey]:
    """Everything but the time that is left to live, as seconds go by."""
    (raw,) = await read_raw(store)
    return {name: key._replace(ttl=round(key.ttl / 10_000)) for name, key in raw.items()}


def without_pulse(raw: dict[str, RawKey]) -> dict[str, RawKey]:
    """A sweep that can end nobody was still a sweep."""
    clock = raw.get("clock")
    if clock is None or clock.kind != "hash":
        return raw
    rest = {field: value for field, value in clock.content.items() if field not in (b"pulse", b"patience", b"swept")}
    return {**raw, "clock": clock._replace(content=rest)} if rest else {n: k for n, k in raw.items() if n != "clock"}


@pytest.mark.parametrize("planted", KEYS)
@pytest.mark.parametrize("call", CALLS)
async def test_a_key_of_the_wrong_type_leaves_no_half_a_write(store: Store, call: str, planted: str) -> None:
    session_id = await prepare(store)
    name = await plant(store, planted, session_id)
    before = await dump(store)
    if planted in NEEDED[call]:
        with pytest.raises(StoreFault):
            await CALLS[call](store, session_id)
        if (call, planted) == ("cleanup by runtime", "session of t9"):
            assert await store.sessions.get(TASK) is None, "what is whole is cleaned all the same"
        else:
            assert without_pulse(await dump(store)) == without_pulse(before)
    else:
        await CALLS[call](store, session_id)
        after = await dump(store)
        assert (after[name].kind, after[name].content) == ("list", [b"planted"])


def test_every_call_and_every_key_is_in_the_tables() -> None:
    assert NEEDED.keys() == CALLS.keys()
    assert set().union(*NEEDED.values()) == set(KEYS)


async def test_claiming_a_key_of_the_wrong_type_is_refused(store: Store, open_pod: OpenPod) -> None:
    """With several shards a key may be claimed in one and used in another."""
    async with open_pod(shards=4, namespace="claiming") as pod:
        for number in range(8):
            task, key = f"t{number}", "key"
            for shard in pod.scripts.shards:
                await pod.scripts.command("DEL", f"{shard.prefix}idem:{key}")
                await pod.scripts.command("RPUSH", f"{shard.prefix}idem:{key}", "planted")
            with pytest.raises(StoreFault):
                await pod.sessions.create(a_run(task), key)
            assert await pod.sessions.get(Target.task(task)) is None


@pytest.mark.parametrize("planted", ["task:t5", "agent:a5"])
async def test_in_a_batch_the_poisoned_operation_fails_alone(store: Store, planted: str) -> None:
    """Twenty calls at once go out in one script; the fifth one's task or agent is poisoned."""
    await store.inspect()
    await store.scripts.command("RPUSH", store.scripts.shards[0].prefix + planted, "planted")
    created = await asyncio.gather(
        *(store.sessions.create(a_run(f"t{number}", f"a{number}")) for number in range(20)), return_exceptions=True
    )
    assert [number for number, one in enumerate(created) if isinstance(one, BaseException)] == [5]
    assert isinstance(created[5], StoreFault)

    beats = await asyncio.gather(
        *(store.sessions.heartbeat(Target.task(f"t{number}")) for number in range(20)), return_exceptions=True
    )
    assert [number for number, one in enumerate(beats) if not isinstance(one, tuple)] == [5]
    deleted = await asyncio.gather(
        *(store.sessions.delete(Target.task(f"t{number}")) for number in range(20)), return_exceptions=True
    )
    assert [number for number, one in enumerate(deleted) if one is not True] == [5]


async def test_a_poisoned_session_does_not_keep_the_sweep_from_the_others(store: Store) -> None:
    """Nor do more of them than fit into a batch."""
    for number in range(250):
        await store.sessions.create(a_run(f"t{number}", f"a{number}"))
    await advance(store, 1801)
    for number in range(120):
        key = f"{store.scripts.shards[0].prefix}agent:a{number}"
        await store.scripts.command("DEL", key)
        await store.scripts.command("RPUSH", key, "planted")
    with pytest.raises(StoreFault, match="120 sessions could not be ended"):
        await store.sweeper.sweep()
    stats = await store.stats()
    assert (stats["ended"]["expired"], stats["expiredUnswept"]) == (130, 120)
    for number in range(120):
        await store.scripts.command("DEL", f"{store.scripts.shards[0].prefix}agent:a{number}")
    assert await store.sweeper.sweep() == 120
