"""Which node holds which shard: read from what nodes say, put right by redirections, and waited for on the move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Connection, SSLConnection
from redis.crc import key_slot

from tests.audit import audit
from tests.redis_cluster import RedisCluster
from tests.store.pools import pool_of
from tests.store.wire import a_list, a_run, some_events
from tracker.errors import StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.agreement import agreement
from tracker.store.cluster import Cluster, NodeView, _owners, parse_nodes
from tracker.store.connection import connect_node
from tracker.store.deliveries import Deliveries
from tracker.store.doctor import examine
from tracker.store.inspection import judge
from tracker.store.keys import Shard
from tracker.store.store import Store, open_store

TASK = Target.task("t1")


@pytest.fixture
def backend() -> str:
    return "cluster"


def cluster_of(store: Store) -> Cluster:
    assert isinstance(store.scripts.servers, Cluster)
    return store.scripts.servers


NODES = """\
aa 10.0.0.1:7001@17001,one.example myself,master - 0 1700000000000 3 connected 0-99 200 [300->-bb] [301-<-bb]
bb 10.0.0.2:7002@17002,two.example master,fail - 1700000000000 1700000000000 7 disconnected 100-199
cc 10.0.0.3:7003@17003 slave bb 0 1700000000000 7 connected
dd :0@0 master,noaddr - 0 0 0 disconnected
ee 10.0.0.5:7005@17005 handshake - 0 0 0 connected
ff fe80::1:7006@17006,,shard-id=12 master,fail? - 0 1700000000000 9 connected
"""


def test_what_a_node_says_is_read_as_it_is_meant() -> None:
    view = parse_nodes(NODES, ("asked", 7001))
    assert view.masters == [
        NodeView(3, ("10.0.0.1", 7001), ((0, 99), (200, 200))),
        NodeView(7, ("10.0.0.2", 7002), ((100, 199),)),
        NodeView(9, ("fe80::1", 7006), ()),
    ]
    assert view.nodes == {("10.0.0.1", 7001), ("10.0.0.2", 7002), ("10.0.0.3", 7003), ("fe80::1", 7006)}
    assert view.dead == {("10.0.0.2", 7002)}


def test_for_tls_nodes_go_by_their_names_where_they_have_one() -> None:
    view = parse_nodes(NODES, ("asked", 7001), by_name=True)
    assert [master.address[0] for master in view.masters] == ["one.example", "two.example", "fe80::1"]


def test_a_node_that_does_not_know_its_address_has_the_one_it_was_asked_at() -> None:
    view = parse_nodes("aa :7001@17001 myself,master - 0 0 1 connected 5\n", ("asked", 7001))
    assert view.masters == [NodeView(1, ("asked", 7001), ((5, 5),))]


def test_of_several_who_claim_a_slot_the_latest_is_believed() -> None:
    old, new = NodeView(1, ("old", 1), ((0, 10),)), NodeView(2, ("new", 1), ((5, 5),))
    for views in ([old, new], [new, old]):
        assert _owners({0: 5, 1: 6, 2: 11}, views) == {0: ("new", 1), 1: ("old", 1)}


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("MOVED 3999 10.0.0.1:6381", ("10.0.0.1", 6381)),
        ("3999 one.example:6381", ("one.example", 6381)),
        ("MOVED 3999 ::1:6381", ("::1", 6381)),
        ("MOVED 3999 :6381", ("here", 6381)),
        ("MOVED 3999 nowhere", ("here", 1)),
        ("MOVED", ("here", 1)),
    ],
)
async def test_a_redirection_is_read_as_it_is_meant(text: str, owner: tuple[str, int]) -> None:
    shard = Shard("ns", 0)
    cluster = Cluster(Settings(store_url="redis+cluster://first"), [shard])
    cluster._owners[0] = ("here", 1)
    cluster.moved(shard, text)
    assert cluster._owners[0] == owner


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+cluster"])
def test_no_setting_of_the_driver_is_left_to_its_defaults(scheme: str) -> None:
    settings = Settings(store_url=f"{scheme}://me:p%40ss@first:1,second?client_name=pod", store_timeout_seconds=0.5)
    pool = pool_of(connect_node(settings, ("node", 7), 3, 0.5))
    assert pool.connection_class is (SSLConnection if scheme.startswith("rediss") else Connection)
    connection = pool.make_connection()  # type: ignore[no-untyped-call]
    assert (connection.host, connection.port, connection.client_name) == ("node", 7, "pod")
    assert (connection.username, connection.password) == ("me", "p@ss")
    assert connection.retry._retries == 0
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (0.5, 0.5)
    assert (pool.timeout, pool.max_connections) == (0.5, 3)
    assert connection.protocol == 2
    assert not pool.maint_notifications_enabled()  # type: ignore[no-untyped-call]


CALLS: dict[str, Callable[[Store], Awaitable[Any]]] = {
    "the hot path": lambda pod: pod.sessions.heartbeat(TASK),
    "many heartbeats": lambda pod: pod.sessions.heartbeat_all([TASK]),
    "a script": lambda pod: pod.stats(),
    "a listing": lambda pod: pod.listing.page(a_list(agentId="a1"), 10),
    "the feed": lambda pod: pod.feed.page(some_events()),
    "a sweep": lambda pod: pod.sweeper.sweep(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_who_asks_the_wrong_node_is_redirected_unnoticed(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """By the answer itself: nobody waits for a look at the whole cluster."""

    async def look() -> None:
        pass

    await store.sessions.create(a_run())
    cluster = cluster_of(store)
    monkeypatch.setattr(cluster, "_look", look)
    (right,) = set(cluster._owners.values())
    wrong = next(address for address in sorted(cluster._nodes) if address != right)
    cluster._owners[0] = wrong
    assert await CALLS[call](store) is not None
    assert cluster._owners[0] == right


def slot_of(store: Store) -> int:
    return key_slot(store.scripts.shards[0].prefix.encode())


async def begin_move(cluster: RedisCluster, slot: int) -> Callable[[], Awaitable[None]]:
    """Opens a slot as if it were to move; call what comes back to end that."""
    masters = await asyncio.to_thread(cluster.masters)
    source = await asyncio.to_thread(cluster.holder, slot)
    target = next(port for port in masters if port != source)
    await asyncio.to_thread(cluster.ask, target, "CLUSTER", "SETSLOT", slot, "IMPORTING", masters[source].id)
    await asyncio.to_thread(cluster.ask, source, "CLUSTER", "SETSLOT", slot, "MIGRATING", masters[target].id)

    async def end() -> None:
        for port in (source, target):
            await asyncio.to_thread(cluster.ask, port, "CLUSTER", "SETSLOT", slot, "STABLE")

    return end


async def test_while_a_slot_moves_what_is_there_goes_on_and_what_is_new_waits(
    store: Store, redis_cluster: RedisCluster
) -> None:
    """A new key cannot be made where it would be left behind."""
    await store.sessions.create(a_run())
    await store.sweeper.sweep()
    end = await begin_move(redis_cluster, slot_of(store))
    try:
        assert await store.sessions.heartbeat(TASK)
        creating = asyncio.create_task(store.sessions.create(a_run("t2", "a2")))
        done, _ = await asyncio.wait([creating], timeout=0.2)
        assert not done
    finally:
        await end()
    assert (await creating).outcome == "created"
    assert await audit(store) == 2


@pytest.mark.settings(store_timeout_seconds=0.3)
async def test_who_waits_for_a_slot_that_moves_does_so_until_his_deadline(
    store: Store, redis_cluster: RedisCluster
) -> None:
    await store.sessions.create(a_run())
    end = await begin_move(redis_cluster, slot_of(store))
    try:
        with pytest.raises(StoreUnavailable):
            await store.sessions.create(a_run("t2", "a2"))
    finally:
        await end()
    assert await store.sessions.get(Target.task("t2")) is None


async def test_a_session_that_has_moved_ahead_is_never_taken_for_gone(
    store: Store, redis_cluster: RedisCluster
) -> None:
    """Its keys are with the new node, the indices still with the old one: neither can judge, so both are waited for."""
    created = await store.sessions.create(a_run())
    slot = slot_of(store)
    source = await asyncio.to_thread(redis_cluster.holder, slot)
    target = next(port for port in await asyncio.to_thread(redis_cluster.masters) if port != source)
    await begin_move(redis_cluster, slot)
    prefix = store.scripts.shards[0].prefix
    ahead = [prefix + "session:" + created.session["id"]]
    moved = await asyncio.to_thread(
        redis_cluster.ask, source, "MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *ahead
    )
    assert moved == b"OK"
    try:
        beating = asyncio.create_task(store.sessions.heartbeat(TASK))
        reading = asyncio.create_task(store.sessions.get(TASK))
        beating_all = asyncio.create_task(store.sessions.heartbeat_all([TASK]))
        listing = asyncio.create_task(store.listing.page(a_list(agentId="a1"), 10))
        done, _ = await asyncio.wait((beating, reading, beating_all, listing), timeout=0.3)
        assert not done
    finally:
        await asyncio.to_thread(redis_cluster.move, slot, target, 100)
    assert await beating
    assert await reading
    assert (await beating_all)[TASK]
    assert len((await listing)[0]) == 1
    assert await audit(store) == 1


async def test_the_doctor_takes_nothing_for_wrong_that_is_on_its_way(store: Store, redis_cluster: RedisCluster) -> None:
    """And mends no counts of a shard of which it may not have seen all sessions."""
    for number in range(20):
        await store.sessions.create(a_run(f"t{number}", f"a{number % 3}"))
    slot = slot_of(store)
    source = await asyncio.to_thread(redis_cluster.holder, slot)
    target = next(port for port in await asyncio.to_thread(redis_cluster.masters) if port != source)
    await begin_move(redis_cluster, slot)
    ahead = await asyncio.to_thread(redis_cluster.ask, source, "CLUSTER", "GETKEYSINSLOT", slot, 200)
    ahead = [key for key in ahead if b":session:" in key][::2]
    words = ("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *ahead)
    assert await asyncio.to_thread(redis_cluster.ask, source, *words) == b"OK"
    try:
        mending = asyncio.create_task(agreement(store.scripts, mend=True))
        done, _ = await asyncio.wait([mending], timeout=0.3)
        assert not done
    finally:
        await asyncio.to_thread(redis_cluster.move, slot, target, 100)
    found = await mending
    assert (found.findings, found.uncounted) == ([], [0])
    assert await audit(store) == 20
    found = await agreement(store.scripts, mend=True)
    assert (found.sessions, found.findings, found.uncounted) == (20, [], [])


async def test_no_event_is_lost_to_a_webhook_while_a_slot_moves(store: Store, redis_cluster: RedisCluster) -> None:
    """What is read of the feed is copied: where the copy cannot be made, nothing may be read."""
    deliveries = Deliveries(store.scripts, ("session.created",), 60)
    await deliveries.take(10)
    await store.sessions.create(a_run())
    await store.sweeper.sweep()
    (unsettled,), _ = await deliveries.take(10)
    await store.sessions.create(a_run("t2", "a2"))
    end = await begin_move(redis_cluster, slot_of(store))
    try:
        taking = asyncio.create_task(deliveries.take(10))
        await asyncio.wait([taking], timeout=0.2)
    finally:
        await end()
    (taken,), _ = await taking
    assert unsettled.event["session"]["taskId"] == "t1"
    assert taken.event["session"]["taskId"] == "t2"


@pytest.mark.parametrize("shards", [16])
async def test_a_cluster_tells_who_its_masters_are_and_which_shards_they_hold(store: Store) -> None:
    findings = await store.inspect()
    assert findings.facts["kind"] == "cluster"
    assert sum(findings.facts["masters"].values()) == 16
    assert len(findings.facts["masters"]) == 3
    assert findings.facts["version"].startswith(("Redis ", "Valkey "))
    (warning,) = findings.warnings
    assert "append-only file is off" in warning
    assert all(name in warning for name in findings.facts["masters"])


@pytest.mark.parametrize("shards", [4])
async def test_too_few_shards_are_a_warning(store: Store) -> None:
    assert any("TRACKER_SHARDS should be 16 or more" in warning for warning in (await store.inspect()).warnings)


def test_a_cluster_that_stops_as_a_whole_and_a_master_without_a_replica_are_warnings() -> None:
    info = {"redis_version": "7.2.0", "require_full_coverage": True, "connected_slaves": 0}
    assert [topic for topic, _ in judge(info)] == ["coverage", "replicas"]
    info |= {"require_full_coverage": False, "connected_slaves": 1}
    assert judge(info) == []


@pytest.mark.parametrize("shards", [16])
async def test_the_doctor_examines_all_masters(store: Store) -> None:
    await asyncio.gather(*(store.sessions.create(a_run(f"t{number}")) for number in range(50)))
    await store.sweeper.sweep()
    examination = await examine(store.scripts, mend=False)
    assert examination.agreement is not None
    assert examination.agreement.sessions == 50
    assert examination.agreement.findings == []
    (masters,) = [check for check in examination.checks if check.name == "masters"]
    assert masters.state == "good"
    assert {check.name for check in examination.checks if check.state == "problem"} == {"persistence"}


async def test_a_cluster_that_is_away_is_unavailable_in_time_and_found_again_by_its_first_addresses(
    redis_cluster: RedisCluster, namespace: str
) -> None:
    settings = Settings(store_url="redis+cluster://127.0.0.1:1,127.0.0.1:2", namespace=namespace, shards=16)
    async with open_store(settings) as pod:
        with pytest.raises(StoreUnavailable):
            await pod.sessions.create(a_run())
        cluster = cluster_of(pod)
        port = next(iter(redis_cluster.servers))
        cluster._seeds = {("127.0.0.1", port)}
        cluster.doubt()
        await asyncio.wait_for(_until_created(pod), 20)


async def _until_created(pod: Store) -> None:
    while True:
        try:
            await pod.sessions.create(a_run())
        except StoreUnavailable:
            continue
        return


async def test_closing_leaves_no_task_behind(store: Store, settings: Settings) -> None:
    before = len(asyncio.all_tasks())
    async with open_store(settings.model_copy(update={"shards": 1})) as pod:
        await pod.stats()
        with pod.hub.reader(some_events()) as reader:
            await reader.begin(None)
            await reader.read(1, 0.05)
    assert len(asyncio.all_tasks()) == before
