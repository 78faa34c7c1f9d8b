"""Cluster: which master of a Redis Cluster holds which shard, and the servers behind that.

redis-py's own cluster client cannot be had here: when one node fails it closes the connections to all of them, sleeps,
and asks the nodes one after the other where what is, while every caller waits. Its pools fail instead of waiting. So
connections, protocol and hash slots are redis-py's, one pool and two pipes per master; where what is, we ask ourselves.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from redis import exceptions as driver
from redis.crc import key_slot

from tracker.cluster_url import ClusterUrl
from tracker.errors import StoreUnavailable
from tracker.settings import Settings
from tracker.store.connection import POOL_CONNECTIONS, Address, connect_node
from tracker.store.ending import end
from tracker.store.keys import Shard
from tracker.store.poll import poll
from tracker.store.server import Server

__all__ = ["Alone", "Cluster", "Servers", "parse_nodes"]

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
"""Time between two looks at who holds what, while nothing is wrong."""
HASTE_SECONDS = 0.1
"""Least time between two looks, whatever goes wrong."""
LOOK_SECONDS = 1.0
"""How long nodes may take to say who holds what."""
ASKED = 5
"""Nodes asked at once. The cluster's own epochs tell whose view is the latest."""


class Servers(Protocol):
    """Says which server holds a shard. ``several``: whether there is more than one, and shards move between them."""

    several: bool

    async def holder(self, shard: Shard) -> Server:
        """The server that holds it. Raises StoreUnavailable when nobody is known to."""

    def known(self, shard: Shard) -> Server | None:
        """The same, if it is known by now."""

    async def all(self) -> list[Server]:
        """Those that hold some shard. Raises StoreUnavailable as long as none is known."""

    def moved(self, shard: Shard, text: str) -> None:
        """A server redirects calls on that shard for good: `MOVED <slot> <host>:<port>`."""

    def doubt(self) -> None:
        """Something went wrong that may mean that shards are elsewhere now."""

    def leave(self) -> None:
        """Leaves servers that only read."""

    async def close(self) -> None: ...


class Alone:
    """One server that holds all shards."""

    several = False

    def __init__(self, server: Server) -> None:
        self._server = server

    async def holder(self, shard: Shard) -> Server:
        return self._server

    def known(self, shard: Shard) -> Server | None:
        return self._server

    async def all(self) -> list[Server]:
        return [self._server]

    def moved(self, shard: Shard, text: str) -> None:
        pass

    def doubt(self) -> None:
        pass

    def leave(self) -> None:
        self._server.leave()

    async def close(self) -> None:
        await self._server.close()


class NodeView(NamedTuple):
    """What a node says of a master: its slots as (first, last). Of several views the highest epoch is right."""

    epoch: int
    address: Address
    slots: tuple[tuple[int, int], ...]


class View(NamedTuple):
    """What one node knows: the masters, all nodes that one can ask, and those which most masters hold to be dead."""

    masters: list[NodeView]
    nodes: set[Address]
    dead: set[Address]


class Cluster:
    """Looks from the first call on until it is closed: once a second, and at once when something goes wrong."""

    several = True

    def __init__(self, settings: Settings, shards: Iterable[Shard]) -> None:
        url = ClusterUrl.parse(settings.store_url)
        self._settings = settings
        self._tls = url.tls
        self._seeds = set(url.nodes)
        self._nodes: set[Address] = set()
        self._slots = {shard.number: key_slot(shard.prefix.encode()) for shard in shards}
        self._owners: dict[int, Address] = {}
        self._servers: dict[Address, Server] = {}
        self._idle_since: dict[Address, float] = {}
        self._scouts: dict[Address, Server] = {}
        self._patience = settings.store_timeout_seconds
        self._doubted = asyncio.Event()
        self._looked = asyncio.Event()
        self._why = ""
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    async def holder(self, shard: Shard) -> Server:
        await self._ensure_known()
        server = self.known(shard)
        if server is None:
            self.doubt()
            raise StoreUnavailable(f"no node of the cluster holds shard {shard.number}")
        return server

    def known(self, shard: Shard) -> Server | None:
        address = self._owners.get(shard.number)
        return None if address is None else self._server(address)

    async def all(self) -> list[Server]:
        await self._ensure_known()
        return [self._server(address) for address in sorted(set(self._owners.values()))]

    def moved(self, shard: Shard, text: str) -> None:
        self.doubt()
        host, _, port = text.rpartition(" ")[2].rpartition(":")
        earlier = self._owners.get(shard.number)
        # With no host it is another port of the server that was asked.
        host = host.strip("[]") or (earlier[0] if earlier else "")
        if host and port.isdecimal():
            self._owners[shard.number] = (host, int(port))

    def doubt(self) -> None:
        self._doubted.set()

    def leave(self) -> None:
        for server in self._servers.values():
            server.leave()

    async def close(self) -> None:
        self._closed = True
        looking, self._looking = self._looking, None
        if looking is not None:
            await end([looking])
        servers = [*self._servers.values(), *self._scouts.values()]
        self._servers, self._scouts, self._owners = {}, {}, {}
        await asyncio.gather(*(server.close() for server in servers))

    async def _ensure_known(self) -> None:
        if self._looking is None and not self._closed:
            self._looking = asyncio.create_task(self._look_on())
        if not self._owners:
            self.doubt()
            await self._looked.wait()
            if not self._owners:
                raise StoreUnavailable(f"the cluster cannot be reached: {self._why or 'it serves none of our slots'}")

    def _server(self, address: Address) -> Server:
        server = self._servers.get(address)
        if server is None:
            client = connect_node(self._settings, address, POOL_CONNECTIONS, self._patience)
            server = self._servers[address] = Server(client, f"{address[0]}:{address[1]}")
        return server

    async def _look_on(self) -> None:
        reachable = True
        while True:
            self._doubted.clear()
            try:
                await self._look()
                await self._retire()
                reachable = True
            except StoreUnavailable as error:
                self._why = str(error)
                if reachable:
                    logger.error("no node says who holds what: %s", error)
                reachable = False
            except Exception:
                logger.exception("cannot tell who holds what")
            self._tell()
            await asyncio.sleep(HASTE_SECONDS)
            try:
                async with asyncio.timeout(REFRESH_SECONDS - HASTE_SECONDS):
                    await self._doubted.wait()
            except TimeoutError:
                pass

    def _tell(self) -> None:
        """Wakes those who wait for the look that has just ended."""
        looked, self._looked = self._looked, asyncio.Event()
        looked.set()

    async def _look(self) -> None:
        """Raises StoreUnavailable when no node says anything."""
        known = random.sample(sorted(self._nodes), min(ASKED, len(self._nodes)))
        views, failures = await self._ask(known)
        if not views:
            # Where it all began: the nodes may all have other addresses by now.
            views, why = await self._ask(self._seeds)
            failures += why
        if not views:
            raise StoreUnavailable("; ".join(failures))
        self._nodes = set().union(*(view.nodes for view in views))
        owners = _owners(self._slots, [master for view in views for master in view.masters])
        changed = {number for number in owners.keys() & self._owners.keys() if owners[number] != self._owners[number]}
        for address in sorted({owners[number] for number in changed}):
            numbers = [str(number) for number in sorted(changed) if owners[number] == address]
            logger.warning("%s:%d now holds of our shards: %s", *address, ", ".join(numbers))
        # Who still waits there would wait until his deadline, although another is ready to answer.
        for address in set(self._owners.values()) - set(owners.values()):
            if address in self._servers and any(address in view.dead for view in views):
                self._servers[address].cut("the node is dead, and another has taken its place")
        self._owners = owners

    async def _ask(self, addresses: Iterable[Address]) -> tuple[list[View], list[str]]:
        return await poll((self._view(address) for address in addresses), min(LOOK_SECONDS, self._patience / 2))

    async def _view(self, address: Address) -> View:
        # Not over the connections of calls: those may all be out.
        scout = self._scouts.get(address)
        if scout is None:
            patience = min(LOOK_SECONDS, self._patience)
            scout = self._scouts[address] = Server(connect_node(self._settings, address, 1, patience))
        reply = await scout.execute(("CLUSTER", "NODES"), lambda reply: isinstance(reply, bytes))
        view = parse_nodes(reply.decode(), address, by_name=self._tls)
        if not view.masters:
            raise driver.ConnectionError("it knows no master")
        return view

    async def _retire(self) -> None:
        """Closes what leads to servers that hold nothing any more, once the calls under way there must be over."""
        now = asyncio.get_running_loop().time()
        idle = self._servers.keys() - set(self._owners.values())
        self._idle_since = {address: self._idle_since.get(address, now) for address in idle}
        for address, since in list(self._idle_since.items()):
            if now - since > self._patience + REFRESH_SECONDS:
                del self._idle_since[address]
                await self._servers.pop(address).close()
        for address in self._scouts.keys() - self._nodes - self._seeds:
            await self._scouts.pop(address).close()


def parse_nodes(text: str, asked: Address, *, by_name: bool = False) -> View:
    """The reply to CLUSTER NODES of the node at an address; ``by_name``: with nodes' host names, where they have one.

    Lines: id, ip:port@bus[,host name], flags, master's id, ping, pong, epoch, link, slots...
    """
    masters: list[NodeView] = []
    nodes: set[Address] = set()
    dead: set[Address] = set()
    for line in text.splitlines():
        _, place, flags, _, _, _, epoch, _, *ranges = line.split(" ")
        marks = set(flags.split(","))
        if marks & {"noaddr", "handshake"}:
            continue
        place, _, name = place.partition(",")
        host, _, port = place.partition("@")[0].rpartition(":")
        if by_name:
            host = name.partition(",")[0] or host
        if "myself" in marks and not host:
            host = asked[0]  # it has not been told how others call it
        address = (host.strip("[]"), int(port))
        nodes.add(address)
        if "fail" in marks:
            dead.add(address)
        if "master" in marks:
            # What is in brackets is on its way, and so still here.
            slots = [part.partition("-") for part in ranges if not part.startswith("[")]
            spans = tuple((int(first), int(last or first)) for first, _, last in slots)
            masters.append(NodeView(int(epoch), address, spans))
    return View(masters, nodes, dead)


def _owners(slots: dict[int, int], masters: Sequence[NodeView]) -> dict[int, Address]:
    """Who holds each shard, by the view with the highest epoch; a slot that nobody serves has nobody."""
    found: dict[int, Address] = {}
    for number, slot in slots.items():
        holders: list[Any] = [
            master for master in masters if any(first <= slot <= last for first, last in master.slots)
        ]
        if holders:
            found[number] = max(holders).address
    return found
