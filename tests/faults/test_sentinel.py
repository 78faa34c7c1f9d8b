"""Failovers of a real Sentinel fleet: ridden out without a restart, and no connection stays with the old master."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.patience import until
from tests.sentinel_servers import MASTER, PATIENCE_SECONDS, Fleet, ask, running_sentinels
from tests.store.wire import a_list, a_run
from tests.sweeping import sweeping
from tracker.errors import StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.store import Store, open_store

pytestmark = pytest.mark.timeout(3 * PATIENCE_SECONDS)


@pytest.fixture(scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """One for all: setting it up takes seconds."""
    async with running_sentinels(tmp_path_factory.mktemp("sentinel")) as running:
        yield running


@pytest.fixture
async def pod(fleet: Fleet, namespace: str) -> AsyncIterator[Store]:
    async with open_store(settings_on(fleet, namespace)) as store, sweeping(store):
        yield store


def settings_on(fleet: Fleet, namespace: str) -> Settings:
    """Its connections bear the namespace's name."""
    url = f"{fleet.url}?client_name={namespace}"
    return Settings(store_url=url, namespace=namespace, sweep_interval_seconds=0.5)


async def use(pod: Store, task: str) -> None:
    """Everything that has connections of its own: the hot path, the listing, and the rest."""
    await pod.sessions.create(a_run(task))
    assert await pod.sessions.heartbeat(Target.task(task))
    assert await pod.listing.page(a_list(agentId="a1"), 10)
    await asyncio.gather(*(pod.stats() for _ in range(5)))


async def works(pod: Store, task: str) -> bool:
    try:
        await use(pod, task)
    except StoreUnavailable:
        return False
    return True


async def callers(fleet: Fleet, port: int, name: str) -> int:
    """The connections of that name that a server has."""
    listed = await ask(fleet.servers[port], "CLIENT", "LIST") or b""
    return str(listed).count(f"name={name}")


async def holds(fleet: Fleet, port: int, namespace: str, task: str) -> bool:
    return bool(await ask(fleet.servers[port], "EXISTS", f"{{{namespace}:0}}:task:{task}"))


async def test_a_planned_failover_leaves_nobody_on_the_old_master(fleet: Fleet, pod: Store, namespace: str) -> None:
    """It lives on, and for seconds takes writes that are lost: nothing but the sentinels can say so."""
    await fleet.settled(replicas=1)
    old = await fleet.master()
    await use(pod, "before")
    assert await callers(fleet, old, namespace) > 2

    async def replicated() -> bool:
        return all([await holds(fleet, port, namespace, "before") for port in fleet.servers])

    await until(replicated)
    assert await ask(fleet.sentinels[0], "SENTINEL", "FAILOVER", MASTER) == b"OK"
    new = await fleet.moved(old)

    async def gone() -> bool:
        return await callers(fleet, old, namespace) == 0

    await until(gone)
    assert (await ask(fleet.servers[old], "ROLE"))[0] == b"master", "the sentinels made us leave, not we ourselves"
    await until(lambda: works(pod, "after"))
    assert await pod.sessions.heartbeat(Target.task("before"))
    assert await holds(fleet, new, namespace, "after")
    assert await callers(fleet, old, namespace) == 0


async def test_the_death_of_the_master_is_ridden_out(fleet: Fleet, pod: Store, namespace: str) -> None:
    await fleet.settled(replicas=1)
    old = await fleet.master()
    await use(pod, "before")
    fleet.servers[old].kill()
    assert not await works(pod, "meanwhile")
    new = await fleet.moved(old)
    await until(lambda: works(pod, "after"))
    assert await holds(fleet, new, namespace, "after")

    # As a master, as it was: it does not know what has happened. Whoever comes now must not fall for it.
    fleet.start(port=old)
    async with open_store(settings_on(fleet, namespace)) as late:
        await until(lambda: works(late, "late"))
        assert await pod.sessions.get(Target.task("late"))
    assert await callers(fleet, old, namespace) == 0
