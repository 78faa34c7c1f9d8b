"""Keys: one slot per shard, and what the docstring of keys.py says of them is what is there."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from redis.crc import key_slot

from tests.clockwork import outage
from tests.conftest import OpenPod
from tests.raw import read_raw
from tests.store.wire import ODD_TEXTS, a_run
from tracker.models import EVENT_TYPES, Target
from tracker.store import keys
from tracker.store.deliveries import Deliveries, Outcome
from tracker.store.keys import Shard
from tracker.store.reshard import reshard
from tracker.store.store import Store

PRELUDE = (resources.files("tracker.store") / "lua" / "prelude.lua").read_text()


async def use_everything(store: Store) -> None:
    sessions = store.sessions
    for name, text in ODD_TEXTS.items():
        await sessions.create(a_run(text, text, triggerType=text, metadata={"k": text}, taskDescription=text), name)
        await sessions.create(a_run(None, inboxMessageId="m", runnerSessionId="r", runtimeInstanceId="i"), text)
        await sessions.heartbeat(Target.task(text), progress=text)
        await sessions.set_provider_session(Target.task(text), text)
        await sessions.request_stop(Target.task(text))
    await sessions.delete(Target.task(ODD_TEXTS["nul"]))
    deliveries = Deliveries(store.scripts, EVENT_TYPES, 60)
    await deliveries.take(1)
    await sessions.delete(Target.task(ODD_TEXTS["newlines"]))
    await sessions.delete(Target.task(ODD_TEXTS["spaces"]))
    taken, _ = await deliveries.take(1)
    await deliveries.settle([Outcome(delivery, "parked") for delivery in taken])
    await store.sweeper.sweep()


@pytest.mark.parametrize("shards", [4])
async def test_all_keys_of_a_shard_lie_in_one_slot(store: Store) -> None:
    await use_everything(store)
    everything = 0
    for shard, raw in zip(store.scripts.shards, await read_raw(store), strict=True):
        slots = {key_slot((shard.prefix + name).encode()) for name in raw}
        assert slots == {key_slot(f"{shard.prefix[1:-2]}".encode())}
        everything += len(raw)
    pattern = store.scripts.shards[0].prefix[:-3].replace("{", "*") + "*"
    found = [await store.scripts.ask(server, "KEYS", pattern) for server in await store.scripts.servers.all()]
    assert sum(map(len, found)) == everything, "there is a key outside all shards"


async def test_the_docstring_names_every_key_and_every_field(store: Store, open_pod: OpenPod) -> None:
    await use_everything(store)
    await outage(store, 60)
    async with open_pod(shards=4) as pod:
        await reshard(pod.scripts)
        raw = {name: key for keys in await read_raw(pod) for name, key in keys.items()}
    documented = dict(
        re.findall(r"^([a-z]+)(?::<\w+>)? +(hash|string|sorted set|stream) ", str(keys.__doc__), re.MULTILINE)
    )
    types = {"zset": "sorted set"}
    assert {name.partition(":")[0]: types.get(key.kind, key.kind) for name, key in raw.items()} == documented

    words = re.search(r"Session hash fields, [^`]*``([^`]*)``", str(keys.__doc__))
    assert words is not None
    used = {field.decode() for name, key in raw.items() if name.startswith("session:") for field in key.content}
    assert used == set(words[1].split())


def test_the_declared_keys_are_those_that_the_prelude_expects_in_that_order() -> None:
    order = re.search(r"^-- KEYS +(.*)$", PRELUDE, re.MULTILINE)
    assert order is not None
    names = re.findall(r"\d (\w+)", order[1])
    assert Shard("ns", 3).declared == tuple("{ns:3}:" + name for name in names)


def test_the_version_in_the_docstring_is_the_one_recorded() -> None:
    assert f"(version {keys.SCHEMA_VERSION})" in str(keys.__doc__)
