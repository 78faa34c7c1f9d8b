"""Ten failovers under load: ``python -m tests.failovers [--failovers 10]``, or ``make failovers``; of a Redis Cluster
with ``--cluster``: see ``tests/cluster_failovers.py``.

A fleet of three servers and three sentinels on loopback, one pod, and writers that create sessions as fast as they are
answered, each with a number. By turns the master is killed, and comes back a little later as it was, or is replaced as
planned (SENTINEL FAILOVER). Afterwards every session whose creation was acknowledged is looked for. Prints a table.
Exit status 1 when a failover was not ridden out.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests import cluster_failovers
from tests.sentinel_servers import MASTER, Fleet, ask, running_sentinels
from tests.store.wire import a_run
from tests.sweeping import sweeping
from tracker.errors import StoreUnavailable
from tracker.models import Target
from tracker.settings import Settings
from tracker.store.store import Store, open_store

WRITERS = 16
PAUSE_SECONDS = 0.02
"""Between two writes of one writer: the machine has failovers to do as well."""
SETTLING_SECONDS = 3
"""How long the load goes on after all sentinels agree: writes that the old master still takes are lost too."""
NAME = "failovers"


class Load:
    """``acknowledged``: the moment of each answer by task; ``refused``: when writes were refused, and their number."""

    def __init__(self, pod: Store) -> None:
        self.acknowledged: dict[str, float] = {}
        self.refused = 0
        self.last_refused = 0.0
        self.slowest = 0.0
        self._pod = pod
        self._number = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        writers = [asyncio.create_task(self._write()) for _ in range(WRITERS)]
        try:
            yield
        finally:
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)

    def begin(self) -> None:
        self.acknowledged.clear()
        self.refused, self.last_refused, self.slowest = 0, 0.0, 0.0

    async def lost(self) -> list[str]:
        """The acknowledged sessions that are not there."""
        tasks = list(self.acknowledged)
        lost = []
        for begin in range(0, len(tasks), 100):
            chunk = tasks[begin : begin + 100]
            found = await asyncio.gather(*(self._pod.sessions.get(Target.task(task)) for task in chunk))
            lost += [task for task, session in zip(chunk, found, strict=True) if session is None]
        return lost

    async def _write(self) -> None:
        while True:
            self._number += 1
            task = f"t{self._number}"
            began = time.monotonic()
            try:
                await self._pod.sessions.create(a_run(task, f"a{self._number % 50}"))
            except StoreUnavailable:
                self.refused += 1
                self.last_refused = time.monotonic()
            else:
                self.acknowledged[task] = time.monotonic()
            self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.sleep(PAUSE_SECONDS)


async def connections(fleet: Fleet, port: int) -> int:
    return str(await ask(fleet.servers[port], "CLIENT", "LIST")).count(f"name={NAME}")


async def main(failovers: int) -> int:
    say(f"{'#':>2} {'how':8} {'agreed after':>12} {'refused until':>13} {'refused':>7} {'slowest':>8} "
        f"{'acknowledged':>12} {'lost':>5} {'lost until':>10} {'connections new/old':>19}")  # fmt: skip
    stranded = 0
    with tempfile.TemporaryDirectory() as directory:
        async with running_sentinels(Path(directory)) as fleet:
            settings = Settings(store_url=f"{fleet.url}?client_name={NAME}", sweep_interval_seconds=0.5)
            async with open_store(settings) as pod:
                load = Load(pod)
                async with sweeping(pod):
                    for number in range(failovers):
                        stranded += await fail_over(fleet, load, number)
    return 1 if stranded else 0


async def fail_over(fleet: Fleet, load: Load, number: int) -> bool:
    """One failover, told in one line. Whether it left anything with the old master."""
    await fleet.settled()
    old = await fleet.master()
    how = "killed" if number % 2 == 0 else "planned"
    load.begin()
    async with load.running():
        await asyncio.sleep(1)
        began = time.monotonic()
        if how == "killed":
            fleet.servers[old].kill()
        else:
            await ask(fleet.sentinels[0], "SENTINEL", "FAILOVER", MASTER)
        new = await fleet.moved(old)
        agreed = time.monotonic() - began
        await asyncio.sleep(SETTLING_SECONDS)
    lost = await load.lost()
    if how == "killed":
        fleet.start(port=old)
    await fleet.settled()
    counts = await connections(fleet, new), await connections(fleet, old)
    until = max(load.last_refused - began, 0.0)
    last_lost = max((load.acknowledged[task] - began for task in lost), default=0.0)
    say(f"{number + 1:2} {how:8} {agreed:10.2f} s {until:11.2f} s {load.refused:7} {load.slowest:6.2f} s "
        f"{len(load.acknowledged):12} {len(lost):5} {last_lost:8.2f} s {counts[0]:>15} / {counts[1]}")  # fmt: skip
    return counts[1] > 0 or until > agreed + SETTLING_SECONDS - 1


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--failovers", type=int, default=10)
    parser.add_argument("--cluster", action="store_true")
    options = parser.parse_args()
    sys.exit(asyncio.run((cluster_failovers.main if options.cluster else main)(options.failovers)))
