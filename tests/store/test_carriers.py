"""Carriers: how batches fare when connections, caches and servers come and go; whose reply is whose all the while."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.audit import audit
from tests.store.pools import pool_for
from tests.store.puppet import Puppet, resp, running_puppet
from tests.store.wire import a_run
from tracker.errors import SchemaMismatch, StoreError, StoreFault, StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.batching import Reply
from tracker.store.carriers import ClientCarrier, PipeCarrier
from tracker.store.pipe import Pipe
from tracker.store.scripts import Scripts
from tracker.store.store import Store, open_store

TIMEOUT = 0.3
SLACK = 0.7


@pytest.fixture
async def puppet() -> AsyncIterator[Puppet]:
    async with running_puppet() as running:
        running.answer = find_all
        yield running


@pytest.fixture
async def pod(puppet: Puppet) -> AsyncIterator[Store]:
    async with open_store(Settings(store_url=puppet.url, store_timeout_seconds=TIMEOUT)) as store:
        yield store


def operations_in(own: list[bytes]) -> list[list[bytes]]:
    """The operations that a script call carries: each comes as a count and as many arguments."""
    operations = []
    while own:
        count = int(own[0])
        operations.append(own[1 : 1 + count])
        own = own[1 + count :]
    return operations


def found(operation: list[bytes]) -> list[bytes]:
    """A session whose agent is the task that was asked for."""
    fields = [b"agent", operation[1], b"trigger", b"t", b"started", b"1", b"due", b"2", b"ttl", b"1"]
    return [b"found", b"0199b1f2-6c1e-7000-9a55-0c3f3f8f2a10", *fields]


async def find_all(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
    return resp([found(operation) for operation in operations_in(own)])


async def agent_of(pod: Store, task: str) -> str:
    session = await pod.sessions.get(Target.task(task))
    assert session is not None
    return session["agentId"]


# --- over the pipe ----------------------------------------------------------------------------------------------------


async def test_calls_at_once_share_a_round_trip(pod: Store, puppet: Puppet) -> None:
    assert await asyncio.gather(*(agent_of(pod, f"t{n}") for n in range(100))) == [f"t{n}" for n in range(100)]
    assert len(puppet.heard) == 1


async def test_when_redis_has_forgotten_the_script_the_batch_goes_out_whole_once_more(
    pod: Store, puppet: Puppet
) -> None:
    async def forgotten(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        if puppet.heard[-1][0] == b"EVALSHA":
            return b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
        return await find_all(own, writer)

    puppet.answer = forgotten
    assert await asyncio.gather(*(agent_of(pod, f"t{n}") for n in range(10))) == [f"t{n}" for n in range(10)]
    (first, own), (second, again) = puppet.heard
    assert (first, second) == (b"EVALSHA", b"EVAL")
    assert own == again


async def test_a_connection_lost_in_flight_fails_that_flight_alone(pod: Store, puppet: Puppet) -> None:
    async def leave_once(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        puppet.answer = find_all
        puppet.hang_up()
        return b""

    assert await agent_of(pod, "before") == "before"
    puppet.answer = leave_once
    with pytest.raises(StoreUnavailable, match="closed the connection"):
        await agent_of(pod, "lost")
    assert await agent_of(pod, "after") == "after"
    assert len(puppet.heard) == 3, "nothing was sent twice"


async def test_a_connection_lost_while_idle_fails_nobody(pod: Store, puppet: Puppet) -> None:
    for number in range(3):
        assert await agent_of(pod, f"t{number}") == f"t{number}"
        puppet.hang_up()
        await asyncio.sleep(0.01)


async def test_a_flight_that_is_given_up_fails_what_shares_its_connection_and_mixes_nothing_up(
    pod: Store, puppet: Puppet
) -> None:
    """Reads and heartbeats are flights of their own on the one connection."""
    first = asyncio.Event()

    async def stall(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        if not first.is_set():
            first.set()
            await asyncio.sleep(2 * TIMEOUT)
        return await find_all(own, writer)

    puppet.answer = stall
    outcomes = await asyncio.gather(
        agent_of(pod, "slow"), pod.sessions.heartbeat(Target.task("behind")), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert await asyncio.gather(*(agent_of(pod, f"t{n}") for n in range(50))) == [f"t{n}" for n in range(50)]


async def test_the_layout_is_checked_before_the_first_batch(pod: Store, puppet: Puppet) -> None:
    async with open_store(Settings(store_url=puppet.url, shards=2)) as stranger:
        outcomes = await asyncio.gather(*(agent_of(stranger, f"t{n}") for n in range(5)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {SchemaMismatch}
    assert puppet.heard == [], "no batch was sent"


async def test_the_deadline_covers_opening_too() -> None:
    """A host that takes the connection and says nothing: the flight is given up, and so is the next."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        async with open_store(Settings(store_url=url, store_timeout_seconds=TIMEOUT)) as pod:
            for _ in range(2):
                began = asyncio.get_running_loop().time()
                outcomes = await asyncio.gather(*(agent_of(pod, f"t{n}") for n in range(5)), return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
                assert asyncio.get_running_loop().time() - began < TIMEOUT + SLACK


async def test_whatever_the_connection_does_nobody_gets_anothers_reply(puppet: Puppet) -> None:
    """I10 under replies that come late, in crumbs or not at all, and connections that break, at random."""
    chance = random.Random(7)

    async def misbehave(own: list[bytes], writer: asyncio.StreamWriter) -> bytes:
        mood = chance.random()
        if mood < 0.05:
            puppet.hang_up()
        elif mood < 0.15:
            await asyncio.sleep(chance.uniform(0, 0.1))
        elif mood < 0.2:
            return b"-NOSCRIPT Please use EVAL.\r\n" if puppet.heard[-1][0] == b"EVALSHA" else b"-WRONGTYPE no\r\n"
        reply = await find_all(own, writer)
        if mood > 0.8:
            cut = chance.randrange(len(reply))
            writer.write(reply[:cut])
            await asyncio.sleep(0)
            reply = reply[cut:]
        return reply

    puppet.answer = misbehave
    tally: Counter[str] = Counter()

    async def ask(pod: Store, worker: int) -> None:
        for number in range(60):
            task = f"{worker}-{number}"
            try:
                async with asyncio.timeout(0.03 if number % 7 == 0 else None):
                    answer = await agent_of(pod, task)
            except (StoreError, TimeoutError) as error:
                tally[type(error).__name__] += 1
            else:
                assert answer == task
                tally["answered"] += 1

    async with open_store(Settings(store_url=puppet.url, store_timeout_seconds=0.06)) as pod:
        await asyncio.gather(*(ask(pod, worker) for worker in range(20)))
    assert tally["answered"] > 300
    assert tally["StoreUnavailable"] > 10


@pytest.mark.parametrize("turns", range(1, 40, 3))
async def test_closing_at_any_moment_leaves_nobody_waiting(puppet: Puppet, turns: int) -> None:
    """While the layout is checked, the connection opens, or the flight is out."""
    async with open_store(Settings(store_url=puppet.url)) as pod:
        asking = asyncio.create_task(agent_of(pod, "t1"))
        for _ in range(turns):
            await asyncio.sleep(0)
    (outcome,) = await asyncio.wait_for(asyncio.gather(asking, return_exceptions=True), 5)
    assert outcome == "t1" or isinstance(outcome, StoreUnavailable)


# --- both -------------------------------------------------------------------------------------------------------------


async def carried(carrier: ClientCarrier | PipeCarrier, *operations: tuple[str, ...]) -> list[Reply] | StoreError:
    landed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    carrier.carry(list(operations), landed.set_result)
    outcome: list[Reply] | StoreError = await asyncio.wait_for(landed, 10)
    return outcome


@pytest.fixture
async def scripts(settings: Settings) -> AsyncIterator[Scripts]:
    scripts = Scripts(settings)
    yield scripts
    await scripts.close()


@pytest.fixture
async def carrier(scripts: Scripts, settings: Settings) -> AsyncIterator[ClientCarrier | PipeCarrier]:
    """As the store would choose: the pipe to a Redis, the client to the embedded store."""
    shard = scripts.shards[0]
    if settings.in_memory:
        client_carrier = ClientCarrier(scripts, "read", shard)
        yield client_carrier
        await client_carrier.close()
        return
    pipe_carrier = PipeCarrier(scripts, "read", shard)
    yield pipe_carrier
    await pipe_carrier.close()


async def test_each_operation_has_a_reply_in_its_place(carrier: ClientCarrier | PipeCarrier) -> None:
    assert await carried(carrier, ("task", "t1"), ("task", ""), ("id", "🦄")) == [[b"missing"]] * 3


async def test_a_script_that_is_refused_lands_as_a_fault(
    scripts: Scripts, carrier: ClientCarrier | PipeCarrier
) -> None:
    await scripts.enroll()
    await scripts.command("SET", scripts.shards[0].prefix + "clock", "no hash")
    outcome = await carried(carrier, ("task", "t1"))
    assert isinstance(outcome, StoreFault)


async def test_a_store_laid_out_for_others_lands_as_a_mismatch(
    scripts: Scripts, carrier: ClientCarrier | PipeCarrier
) -> None:
    await scripts.look(scripts.shards[0], "HSET", scripts.shards[0].prefix + "schema", "version", "0")
    assert isinstance(await carried(carrier, ("task", "t1")), SchemaMismatch)


async def test_a_redis_goes_by_the_pipe_and_the_embedded_store_by_the_client(store: Store, settings: Settings) -> None:
    await store.sessions.create(a_run())
    carriers = {type(batcher._carrier) for batcher in store.sessions._batchers.values()}
    assert carriers == ({ClientCarrier} if settings.in_memory else {PipeCarrier})
    await audit(store)


async def test_a_pipe_on_a_url_of_many_options_still_opens(puppet: Puppet) -> None:
    pool = pool_for(puppet.url + "?client_name=a&username=u&password=p")
    pipe = Pipe(pool)
    await pipe.open()
    assert pipe.ready
    await pipe.close()
    await pool.aclose()
