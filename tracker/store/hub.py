"""Hub: the one reader of the feed in this process, fanned out to the many who follow it.

It starts with the first reader and ends with the last. A bell tells it where there are new entries; then it reads
them as every page is read, which tells when some of them are gone, and puts them into the readers' queues. These are
bounded: who lags behind so far that the queue is full gets nothing more from the hub until he has caught up by pages of
his own. So a slow reader costs neither others time nor us memory, and loses nothing while the feed holds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tracker.errors import PositionLost, StoreError, TooManyReaders
from tracker.models import ListEvents
from tracker.settings import Settings
from tracker.store.bell import Bell, Carillon, Clock, Doorbell
from tracker.store.ending import end
from tracker.store.feed import Change, Feed, Found, Position, written
from tracker.store.scripts import Scripts

__all__ = ["Hub", "Reader"]

logger = logging.getLogger(__name__)

BATCH = 100
"""Entries handed out at once. Then readers have their turn: less than a queue, or all would overflow."""
BATCHES = 100
"""Handed out in a row. Then the bell is asked again: the other shards may have news as well."""
QUEUE = 256
"""Changes that wait for one reader. They are shared, not copied."""
RETRY_SECONDS = 0.5
"""Between two attempts to reach a store that is away."""


class Hub:
    """Counts, for whoever watches: ``resets``: positions found lost; ``lagged``: full queues; ``refused`` readers."""

    def __init__(self, settings: Settings, scripts: Scripts, feed: Feed) -> None:
        self.feed = feed
        self.observer = scripts.observer
        self.resets = 0
        self.lagged = 0
        self.refused = 0
        self._settings = settings
        self._scripts = scripts
        self._readers: set[Reader] = set()
        self._heads: list[Position] | None = None
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def readers(self) -> int:
        """How many there are now."""
        return len(self._readers)

    @property
    def heads(self) -> list[Position] | None:
        """How far the feed was handed out; None while that is not known."""
        return self._heads

    @contextmanager
    def reader(self, query: ListEvents) -> Iterator[Reader]:
        """A reader of what fits the query's filters. Raises TooManyReaders."""
        if len(self._readers) >= self._settings.max_streams:
            self.refused += 1
            self.observer.slipped("refused")
            raise TooManyReaders("Too many readers of the change feed: try again, or another server")
        reader = Reader(self, query, ended=self._stopped)
        self._readers.add(reader)
        self.observer.followed(len(self._readers))
        if self._task is None and not self._stopped:
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            yield reader
        finally:
            self._readers.remove(reader)
            self.observer.followed(len(self._readers))
            if not self._readers:
                self._rest()

    def stop(self) -> None:
        """Ends all readers, and from now on each at once: the process is about to end."""
        self._stopped = True
        for reader in self._readers:
            reader.end()

    async def close(self) -> None:
        self.stop()
        self._rest()
        await end(self._ending)
        if self._closing:
            await asyncio.wait(self._closing)

    def _rest(self) -> None:
        task, self._task, self._heads = self._task, None, None
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()

    async def _run(self) -> None:
        reachable = True
        bell = self._make_bell()
        try:
            while self._is_current():
                try:
                    await self._follow(bell)
                    if not reachable:
                        logger.info("events: the store is back")
                    reachable = True
                    continue
                except PositionLost as error:
                    logger.warning("events: %s", error)
                    self._heads = None
                    continue
                except StoreError as error:
                    if reachable:
                        logger.error("events: %s", error)
                    reachable = False
                except Exception:
                    logger.exception("reading the feed failed")
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            # In a task of its own, which no further cancellation keeps from it.
            closing = asyncio.get_running_loop().create_task(bell.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _make_bell(self) -> Bell:
        if self._settings.in_memory:
            return Clock(self._scripts)
        if self._scripts.servers.several:
            return Carillon(self._settings, self._scripts)
        return Doorbell(self._settings, self._scripts)

    def _is_current(self) -> bool:
        """Or it was told to end, and the driver swallowed the cancellation."""
        return self._task is asyncio.current_task()

    async def _follow(self, bell: Bell) -> None:
        """One step: find out where the feed ends, or wait for what comes behind that and hand it out."""
        if self._heads is None:
            self._set_heads(await self.feed.present())
            return
        shards = await bell.ring(self._heads)
        if not shards or self._heads is None:
            return
        walk = self.feed.walk(self._heads, shards=shards)
        for _ in range(BATCHES):
            changes = await walk.take(BATCH)
            self._hand_out(changes)
            if len(changes) < BATCH or not self._is_current():
                return
            await asyncio.sleep(0)  # the readers' turn

    def _set_heads(self, heads: list[Position]) -> None:
        """From now on; what came before, and was not handed out, readers must look up themselves."""
        if not self._is_current():
            return
        self._heads = heads
        for reader in self._readers:
            reader.deafen()

    def _hand_out(self, changes: list[Change]) -> None:
        if not self._is_current() or self._heads is None:
            return
        for change in changes:
            self._heads[change.shard] = change.position
        for reader in self._readers:
            reader.offer(changes)


class Reader:
    """Follows the feed from a position on: first by pages, then with the hub, and by pages again whenever it lags."""

    def __init__(self, hub: Hub, query: ListEvents, *, ended: bool) -> None:
        self.ended = ended
        self._hub = hub
        self._query = query
        self._positions: list[Position] = []
        self._queue: deque[Change] = deque()
        self._listening = False
        self._caught_up = False
        self._bell = asyncio.Event()

    @property
    def position(self) -> str:
        """The event id behind which it is: all that fitted up to there has been read."""
        return written(self._positions)

    async def begin(self, after: str | None, field: str = "after") -> None:
        """Where to read from; None: from now on. Raises Invalid, StoreError. Whether it is held, reading tells."""
        if after is None:
            # In this order: what comes in between is in the queue as well, and passed over there.
            self._listen()
            self._positions = await self._hub.feed.present()
            self._caught_up = True
        else:
            self._positions = self._hub.feed.parse(after, field)

    async def read(self, limit: int, patience: float) -> list[Found]:
        """The next events that fit, ``limit`` at most; possibly none, and surely when nothing came for so many seconds.

        Raises PositionLost when the feed no longer holds what comes next, and goes on with what it does hold, and
        StoreError when it cannot be told now.
        """
        if self._caught_up:
            if self._listening and not self._queue:
                await self.pause(patience)
            if found := self._take(limit):
                return found
            if self._listening:
                self._advance()
                return []
            self._caught_up = False
        return await self._catch_up(limit)

    async def pause(self, seconds: float) -> None:
        """Until something happens, or the time is over."""
        if self.ended:
            return
        self._bell.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._bell.wait()
        except TimeoutError:
            pass

    def end(self) -> None:
        """Nobody is there any more to read for."""
        self.ended = True
        self._bell.set()

    def offer(self, changes: Sequence[Change]) -> None:
        """What the hub has for it. When the queue is full it hears no more."""
        if not self._listening:
            return
        for change in changes:
            if change.fits(self._query):
                if len(self._queue) == QUEUE:
                    if self._caught_up:
                        self._hub.lagged += 1
                        self._hub.observer.slipped("lagged")
                    self.deafen()
                    return
                self._queue.append(change)
                self._bell.set()

    def deafen(self) -> None:
        """What comes now it must look up itself."""
        self._listening = False
        self._bell.set()

    def _listen(self) -> None:
        self._queue.clear()
        self._listening = True

    async def _catch_up(self, limit: int) -> list[Found]:
        # First listen, then look: what comes in between is found in both places, and passed over in the second.
        if not self._listening:
            self._listen()
        try:
            found, complete = await self._hub.feed.scan(self._positions, self._query, limit)
        except PositionLost as error:
            self._hub.resets += 1
            self._hub.observer.slipped("reset")
            self._positions = self._hub.feed.parse(error.onward)
            raise
        self._caught_up = complete
        return found

    def _take(self, limit: int) -> list[Found]:
        found: list[Found] = []
        while self._queue and len(found) < limit:
            change = self._queue.popleft()
            if change.position > self._positions[change.shard]:
                self._positions[change.shard] = change.position
                found.append(Found(self.position, change))
        if self._listening and not self._queue:
            self._advance()
        return found

    def _advance(self) -> None:
        """With nothing left in the queue it is where the hub is: so a filter that seldom fits loses no position."""
        heads = self._hub.heads
        if heads is not None:
            self._positions = [max(pair) for pair in zip(self._positions, heads, strict=True)]
