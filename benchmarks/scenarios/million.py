"""A million sessions on a cluster, and a master that is killed."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import statistics
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from redis.crc import key_slot

from benchmarks.ledger import End, Ledger, Verdict
from benchmarks.outcome import Outcome, Row, Target
from benchmarks.process import StartError
from benchmarks.redis_cluster import RedisCluster, running_cluster
from benchmarks.sessions import body, task
from benchmarks.spread import Spread
from benchmarks.stage import Stage
from tracker.errors import StoreUnavailable
from tracker.models import CreateSession
from tracker.models import Target as Whom
from tracker.settings import Settings
from tracker.store.agreement import agreement
from tracker.store.ending import end
from tracker.store.ids import shard_of_text
from tracker.store.store import Store, open_store

__all__ = ["million"]

PODS = 2
SHARDS = 64
MASTER = 1
"""The one that is killed."""
KILLED_AT, WAVE_AT = 0.4, 0.6
"""When, as parts of the time."""
FAILOVER_SECONDS = 60
FEED_LENGTH = 5000
"""Per shard: all that happens while the sessions are held."""
TOGETHER = 1024
LONG_SECONDS, SHORT_SECONDS, PASSING_SECONDS = 3600, 60, 15
SHORT_PART, WAVE_PART, REPLACED_PART = 0.01, 0.02, 0.01
"""Those with a short TTL that heartbeat all the time; those that fall silent at once; those that are replaced."""
SHORT_BEATS_SECONDS = 20
BEATS_PER_SECOND = 1500
"""Of the others: in ten minutes nearly every one of a million has a turn."""
TICK_SECONDS = 0.02
UNANSWERED = 2000
"""Heartbeats under way at most."""
PASSING_PER_SECOND = 40
DELETED_AFTER_SECONDS = (2, 5)
SETTLE_SECONDS = 25
"""So long nothing is created any more: what was to expire has, then."""
CHUNK = 1000


def million(stage: Stage) -> Outcome:
    """A million sessions held for ten minutes on three masters, one of which is killed; then each one is looked for."""
    with running_cluster(stage.directory, replicated=True) as cluster:
        return asyncio.run(_Holding(stage, cluster).run())


class _Holding:
    """One run. ``ids``: of the sessions that last, by their number; '' while it is not known."""

    def __init__(self, stage: Stage, cluster: RedisCluster) -> None:
        self._stage = stage
        self._cluster = cluster
        self._count = stage.plan.held
        self._seconds = stage.plan.hold_seconds
        self._short = range(self._count - round(self._count * SHORT_PART), self._count)
        self._replaced = range(self._short.start - round(self._count * REPLACED_PART), self._short.start)
        self._beaten = range(self._replaced.start)
        self._wave = range(self._count, self._count + round(self._count * WAVE_PART))
        self._passing = itertools.count(self._wave.stop)
        self._ids: list[str] = [""] * self._count
        self._ledger = Ledger(SHARDS)
        self._pods: list[Store] = []
        self._chance = random.Random(1)  # noqa: S311 - a load, and no secret
        self._shards = [shard_of_text(task(number), SHARDS) for number in range(self._count)]
        self._lost: set[int] = set()
        self._killed = 0.0
        self._back: dict[int, float] = {}
        self._beats = self._refused = self._refused_others = self._under_way = 0
        self._usual, self._meanwhile = array("d"), array("d")

    async def run(self) -> Outcome:
        empty = self._cluster.used_bytes()
        async with self._open(60, sweeping=False) as self._pods:
            began = time.monotonic()
            await self._fill(range(self._short.start), LONG_SECONDS)
            per_second = self._short.start / (time.monotonic() - began)
            events, each = await self._feed_bytes()
            total = (self._cluster.used_bytes() - empty - events) / self._short.start
            await self._fill(self._wave, self._seconds * WAVE_AT)
            await self._fill(self._short, SHORT_SECONDS)
        gc.collect()
        gc.freeze()  # the ledger's entries stay: nobody need look at them again and again
        async with self._open(1) as self._pods:
            starts = await self._pods[0].feed.present()
            costs = await self._hold()
        async with self._open(60, sweeping=False) as self._pods:
            verdict = await self._judge(starts)
        self._stage.problems.extend(verdict.faults)
        server_us, redis_us, beats_per_second = costs
        others = _p99(self._meanwhile)
        figures = {
            "created_per_second": per_second,
            "requests_per_second": beats_per_second,
            "p50_ms": statistics.median(self._usual),
            "p99_ms": _p99(self._usual),
            "others_p99_ms": others,
            "server_cpu_us": server_us,
            "redis_cpu_us": redis_us,
            "failover_ms": max(self._back.values()) - self._killed,
            "total_bytes": total,
            "event_bytes": each,
        }
        ends = ", ".join(f"{count:,} {reason}" for reason, count in verdict.ends.items())
        held = (
            f"Held for {self._seconds} s: {self._beats:,} heartbeats; {self._refused:,} calls refused, "
            f"{self._refused_others:,} of them heartbeats on other masters. Ended meanwhile: {ends}. Lost with the "
            f"master: {verdict.undone} changes."
        )
        return Outcome(
            [Row({"sessions": self._count}, {name: Spread.of([value]) for name, value in figures.items()})],
            [
                Target("what is wrong with sessions, events or keys", len(verdict.faults), 0),
                Target("p99 of heartbeats on the other masters, in the usual one", others / _p99(self._usual), 2),
            ],
            [held, "CPU: of both pods, which share a process, and of all six nodes; with creates, ends and sweeps."],
        )

    @asynccontextmanager
    async def _open(self, patience: float, *, sweeping: bool = True) -> AsyncIterator[list[Store]]:
        """The pods, each with that deadline (s) for its calls."""
        settings = Settings(
            store_url=self._cluster.url,
            shards=SHARDS,
            store_timeout_seconds=patience,
            feed_length=FEED_LENGTH,
        )
        async with AsyncExitStack() as stack:
            pods = [await stack.enter_async_context(open_store(settings)) for _ in range(PODS)]
            sweeps = [asyncio.create_task(pod.sweeper.run()) for pod in pods if sweeping]
            try:
                yield pods
            finally:
                await end(sweeps)

    async def _fill(self, numbers: range, ttl_seconds: float) -> None:
        for first in range(numbers.start, numbers.stop, TOGETHER):
            self._stage.say(f"million: creating sessions, {first:,} of {self._wave.stop:,}")
            some = numbers[first - numbers.start :][:TOGETHER]
            await asyncio.gather(*(self._create(number, ttl_seconds) for number in some))

    async def _feed_bytes(self) -> tuple[int, float]:
        """What the feeds take, and what of it one event."""
        total = count = 0
        for shard in self._pods[0].scripts.shards:
            words = ("MEMORY", "USAGE", shard.events, "SAMPLES", 0)
            total += await self._pods[0].scripts.command(*words, shard=shard)
            count += await self._pods[0].scripts.command("XLEN", shard.events, shard=shard)
        return total, total / count

    # The load

    async def _hold(self) -> tuple[float, float, float]:
        """All that goes on while the sessions are held; until the master is killed: processor time of pods and Redis
        per heartbeat (microseconds), and heartbeats per second."""
        over = asyncio.Event()
        beating = [
            asyncio.create_task(self._beat_on(over, self._beaten, BEATS_PER_SECOND * len(self._beaten) / 1e6 + 50)),
            asyncio.create_task(self._beat_on(over, self._short, len(self._short) / SHORT_BEATS_SECONDS)),
        ]
        passing = asyncio.create_task(self._pass())
        try:
            costs = await self._measure(self._seconds * KILLED_AT)
            slots = self._cluster.slots(MASTER)
            self._lost = {
                shard.number for shard in self._pods[0].scripts.shards if key_slot(shard.prefix.encode()) in slots
            }
            self._killed = _now()
            self._cluster.masters[MASTER].process.kill()
            self._ledger.losses.append((self._lost, _now()))
            self._stage.say("million: a master was killed")
            await self._failed_over()
            await asyncio.to_thread(self._cluster.start, self._cluster.masters[MASTER].port)
            self._stage.say("million: held; the master is back, as a replica")
            await asyncio.sleep(self._seconds * (1 - KILLED_AT))
            await end([passing])
            await asyncio.sleep(SETTLE_SECONDS)
        finally:
            over.set()
            await end([passing])
            await asyncio.wait(beating)
        for one in beating:
            one.result()
        return costs

    async def _failed_over(self) -> None:
        """Not earlier may the master come back: it would come with nothing. Raises StartError."""
        for _ in range(round(FAILOVER_SECONDS / TICK_SECONDS)):
            if len(self._back) == len(self._lost):
                return
            await asyncio.sleep(TICK_SECONDS)
        raise StartError(
            f"after {FAILOVER_SECONDS} s only {len(self._back)} of {len(self._lost)} shards are served again"
        )

    async def _measure(self, seconds: float) -> tuple[float, float, float]:
        self._stage.say("million: held")
        beats, began = self._beats, time.monotonic()
        ours, redis = time.process_time(), self._cluster.cpu_seconds()
        await asyncio.sleep(seconds)
        beats = max(self._beats - beats, 1)
        each = 1e6 / beats
        ours, redis = time.process_time() - ours, self._cluster.cpu_seconds() - redis
        return ours * each, redis * each, beats / (time.monotonic() - began)

    async def _beat_on(self, over: asyncio.Event, numbers: range, per_second: float) -> None:
        """Heartbeats by task, one session after the other, so many a second, and none faster to make up for others."""
        order = itertools.cycle(numbers)
        async with asyncio.TaskGroup() as group:
            due, last = 0.0, time.monotonic()
            while not over.is_set():
                now = time.monotonic()
                due, last = min(due + (now - last) * per_second, UNANSWERED), now
                for number in itertools.islice(order, int(due)):
                    if self._under_way < UNANSWERED:
                        group.create_task(self._beat(number))
                due -= int(due)
                await asyncio.sleep(TICK_SECONDS)

    async def _beat(self, number: int) -> None:
        name, shard, pod = self._ids[number], self._shards[number], self._pods[number % PODS]
        if not name:
            return
        began = _now()
        self._under_way += 1
        try:
            beat = await pod.sessions.heartbeat(Whom.task(task(number)))
        except StoreUnavailable:
            self._refused += 1
            self._refused_others += shard not in self._lost
            return
        finally:
            self._under_way -= 1
        ended = _now()
        self._beats += 1
        if beat is None:
            self._ledger.missed(name, began, ended)
        else:
            self._ledger.renewed(name, began, ended)
        if not self._killed:
            self._usual.append(ended - began)
        elif shard not in self._lost and len(self._back) < len(self._lost):
            self._meanwhile.append(ended - began)
        if self._killed and shard in self._lost and began > self._killed:
            self._back.setdefault(shard, ended)

    async def _pass(self) -> None:
        """Sessions that come and go: by turns they fall silent, are deleted, or take the task of one that lasts."""
        ways = itertools.cycle([self._expire, self._delete, self._replace])
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._quietly(next(ways)))
                await asyncio.sleep(1 / PASSING_PER_SECOND)

    async def _quietly(self, way: Callable[[], Awaitable[object]]) -> None:
        try:
            await way()
        except StoreUnavailable:
            self._refused += 1

    async def _expire(self) -> None:
        await self._create(next(self._passing), PASSING_SECONDS)

    async def _delete(self) -> None:
        name = await self._create(number := next(self._passing), LONG_SECONDS)
        await asyncio.sleep(self._chance.uniform(*DELETED_AFTER_SECONDS))
        self._ledger.may_end(name, "deleted")
        began = _now()
        if await self._pods[number % PODS].sessions.delete(Whom.task(task(number))):
            self._ledger.must_end(name, _now())
        else:
            self._ledger.missed(name, began, _now())

    async def _replace(self) -> None:
        number = self._chance.choice(self._replaced)
        name, self._ids[number] = self._ids[number], ""
        if name:
            self._ledger.may_end(name, "replaced")
            await self._create(number, LONG_SECONDS)
            self._ledger.must_end(name, _now())

    async def _create(self, number: int, ttl_seconds: float) -> str:
        request = CreateSession.model_validate(body(number, ttl_seconds=ttl_seconds))
        began = _now()
        try:
            created = await self._pods[number % PODS].sessions.create(request)
        except StoreUnavailable:
            self._ledger.unsure(task(number))
            raise
        name = created.session["id"]
        self._ledger.created(name, ttl_seconds * 1000, began, _now())
        if number < self._count:
            self._ids[number] = name
        return name

    # The judgement

    async def _judge(self, starts: Sequence[tuple[int, int]]) -> Verdict:
        """From the feed and the indices as they are, and the product's own look at all keys."""
        self._stage.say("million: looking for each session")
        scripts = self._pods[0].scripts
        created: list[tuple[str, str]] = []
        ends: list[End] = []
        living: set[str] = set()
        for shard, start in zip(scripts.shards, starts, strict=True):
            place = f"{start[0]}-{start[1]}"
            if not await scripts.command("XRANGE", shard.events, place, place, shard=shard):
                raise StartError(f"shard {shard.number} has had more events than the feed holds")
            while rows := await scripts.command("XRANGE", shard.events, f"({place}", "+", "COUNT", CHUNK, shard=shard):
                for _, event in rows:
                    name = event[b"id"].decode()
                    if event[b"type"] == b"session.created":
                        created.append((name, event[b"task"].decode()))
                    elif event[b"type"] == b"session.ended":
                        ends.append(End(name, int(event[b"at"]), event[b"reason"].decode()))
                place = rows[-1][0].decode()
            for first in itertools.count(0, CHUNK):
                names = await scripts.command("ZRANGE", shard.declared[1], first, first + CHUNK - 1, shard=shard)
                living |= {name.decode() for name in names}
                if len(names) < CHUNK:
                    break
        verdict = self._ledger.judge(created, ends, living, _now())
        faults = [*verdict.faults]
        gauges = await self._pods[1].gauges()
        if gauges.live + gauges.expired != len(living):
            faults.append(f"the counts say {gauges.live} + {gauges.expired}, but {len(living)} sessions live")
        if gauges.created - sum(gauges.ended.values()) != len(living):
            faults.append(f"the counters say {gauges.created} created and {gauges.ended}, but {len(living)} live")
        found = await agreement(scripts, mend=False)
        faults += [f"shard {one.shard}: {one.key} is {one.meaning}" for one in found.findings[:CHUNK]]
        if found.sessions != len(living):
            faults.append(f"{found.sessions} hashes for {len(living)} sessions")
        return verdict._replace(faults=faults)


def _now() -> float:
    """Ms since 1970: the clock of all nodes."""
    return time.time() * 1000


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
