"""SessionStore: the sessions, one by one. Each change is one operation of one script, in one shard."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Literal, NamedTuple, TypeVar

from tracker.errors import Conflict, IdempotencyMismatch, StoreFault, StoreUnavailable
from tracker.models import IDEMPOTENCY_SECONDS, CreateSession, Session, Target
from tracker.settings import Settings
from tracker.store.batching import Batcher, Carrier, Operation, Reply
from tracker.store.carriers import ClientCarrier, PipeCarrier
from tracker.store.ids import make_tail, shard_of_id, shard_of_text
from tracker.store.scripts import MOVING_SECONDS, Argument, Scripts, is_moving, together
from tracker.store.snapshot import decode, encode

__all__ = ["Beat", "Created", "SessionStore"]

T = TypeVar("T")

_MOVED = re.compile("moved to shard ([0-9]{1,4})")
"""What scripts say of an id whose session is in another shard than its id tells: see ``prelude.lua``."""


class Created(NamedTuple):
    """A session, and whether this very call made it, renewed a live one, or found what an earlier call had made."""

    session: Session
    outcome: Literal["created", "reused", "repeated"]


class Beat(NamedTuple):
    """What a successful heartbeat tells: the new deadline (ms since 1970), and whether the run is asked to stop."""

    due: int
    stop_requested: bool


class SessionStore:
    """Creates, reads, renews, marks and ends sessions.

    Every method raises StoreUnavailable within the store's deadline when there is no answer; a change may then still
    have happened. Calls with a guard (the fencing session id) raise Conflict when another session is the live one.
    """

    def __init__(self, settings: Settings, scripts: Scripts) -> None:
        self._scripts = scripts
        self._observer = scripts.observer
        self._shards = len(scripts.shards)
        self._default_ttl = settings.ttl_seconds
        self._embedded = settings.in_memory
        self._batchers: dict[tuple[str, int], Batcher] = {}
        self._clock = asyncio.get_running_loop().time

    async def create(self, request: CreateSession, idempotency_key: str | None = None) -> Created:
        """Registers a run. Raises Conflict, or IdempotencyMismatch when the key came with another body before."""
        digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()[:32] if idempotency_key else ""
        shard = self._home(request, idempotency_key)
        operation = (
            make_tail(shard),
            request.on_conflict or "supersede",
            idempotency_key or "",
            digest,
            IDEMPOTENCY_SECONDS * 1000,
            round((request.ttl_seconds or self._default_ttl) * 1000),
            request.agent_id,
            request.trigger_type,
            request.task_id or "",
            *encode(request),
        )
        if idempotency_key is None or shard == shard_of_text(idempotency_key, self._shards):
            return await self._create(shard, operation)
        async with self._scripts.one_deadline():
            await self._claim(idempotency_key, digest, IDEMPOTENCY_SECONDS * 1000)
            try:
                return await self._create(shard, operation)
            except Conflict:
                await self._claim(idempotency_key, digest, 0)
                raise

    async def get(self, target: Target) -> Session | None:
        """The live session meant, or None."""
        reply = await self._act("read", target)
        return decode(reply[1], reply[2:]) if reply and reply[0] == b"found" else None

    async def heartbeat(self, target: Target, guard: str | None = None, progress: str | None = None) -> Beat | None:
        """Renews the live session meant; None where there is none."""
        reply = await self._act("heartbeat", target, guard or "", _optional(progress))
        return _beat(reply) if reply and reply[0] == b"renewed" else None

    async def heartbeat_all(self, targets: Iterable[Target]) -> Mapping[Target, Beat | None]:
        """Renews many; what came of each, in the order given."""
        outcomes: dict[Target, Beat | None] = dict.fromkeys(targets)
        places = [(target, shard) for target in outcomes if (shard := self._shard_of(target)) is not None]
        operations = [(target.kind, target.value, "", "") for target, _ in places]
        futures: list[asyncio.Future[Reply]] = []
        began = self._clock()
        try:
            for (_, shard), operation in zip(places, operations, strict=True):
                futures.append(self._submit("heartbeat", shard, operation))
        except StoreUnavailable:
            for future in futures:
                future.cancel()
            raise
        for _ in range(len(outcomes) - len(places)):
            self._observer.missed("heartbeat")
        replies = await self._arrival("heartbeat", asyncio.gather(*futures))
        refused = [number for number, reply in enumerate(replies) if reply[0] == b"error"]
        again = await together(
            self._again("heartbeat", places[number][1], operations[number], replies[number], began)
            for number in refused
        )
        for number, reply in zip(refused, again, strict=True):
            replies[number] = reply
        for (target, _), reply in zip(places, replies, strict=True):
            if reply[0] == b"renewed":
                outcomes[target] = _beat(reply)
        return outcomes

    async def set_provider_session(self, target: Target, provider_session_id: str, guard: str | None = None) -> bool:
        """Notes the provider's id on the live session meant; False where there is none. Does not renew it."""
        reply = await self._act("provider", target, guard or "", provider_session_id)
        return bool(reply and reply[0] == b"updated")

    async def request_stop(self, target: Target) -> bool:
        """Asks the live session meant to stop; False where there is none."""
        reply = await self._act("stop", target)
        return bool(reply and reply[0] == b"updated")

    async def delete(self, target: Target, guard: str | None = None) -> bool:
        """Ends the live session meant; False where there is none."""
        reply = await self._act("delete", target, guard or "")
        return bool(reply and reply[0] == b"deleted")

    async def close(self) -> None:
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))

    def _home(self, request: CreateSession, idempotency_key: str | None) -> int:
        if anchor := request.task_id or idempotency_key:
            return shard_of_text(anchor, self._shards)
        return secrets.randbelow(self._shards)

    def _shard_of(self, target: Target) -> int | None:
        if target.kind == "id":
            return shard_of_id(target.value, self._shards)
        return shard_of_text(target.value, self._shards)

    async def _create(self, shard: int, operation: Operation) -> Created:
        reply = await self._call("create", shard, operation)
        match reply[0]:
            case b"created" | b"reused" | b"repeated" as outcome:
                return Created(decode(reply[1], reply[2:]), outcome.decode())
            case b"conflict":
                session = decode(reply[1], reply[2:])
                raise Conflict(f"Task already has a live session, of agent {session['agentId']}", session)
            case b"mismatch":
                raise IdempotencyMismatch("This Idempotency-Key was used with another body")
        raise _unexpected(reply)

    async def _claim(self, key: str, digest: str, life_ms: int) -> None:
        """Sees to it that a key means one body even where two bodies' tasks lie in different shards.

        With no life this caller's claim is given back: a conflict is not remembered.
        """
        shard = self._scripts.shards[shard_of_text(key, self._shards)]
        reply = await self._scripts.run("claim", shard, key, digest, life_ms)
        if reply[0] == b"mismatch":
            raise IdempotencyMismatch("This Idempotency-Key was used with another body")

    async def _act(self, script: str, target: Target, *rest: Argument) -> Reply | None:
        """The reply of a script to an operation on a target; None for an id that no session can have."""
        shard = self._shard_of(target)
        if shard is None:
            self._observer.missed(script)
            return None
        reply = await self._call(script, shard, (target.kind, target.value, *rest))
        if reply[0] == b"conflict":
            raise Conflict("Another session is the live one of this task", decode(reply[1], reply[2:]))
        return reply

    async def _call(self, script: str, shard: int, operation: Operation) -> Reply:
        began = self._clock()
        reply = await self._arrival(script, self._submit(script, shard, operation))
        return reply if reply[0] != b"error" else await self._again(script, shard, operation, reply, began)

    async def _again(self, script: str, shard: int, operation: Operation, reply: Reply, began: float) -> Reply:
        """What comes of an operation that was refused. If that is because a reshard has taken the session to another
        shard, it goes there, once. As long as it is because its keys are on their way to another node of a cluster, it
        is sent again. All of that has the one deadline of the call that ``began`` then.
        """
        home = shard
        async with self._scripts.one_deadline(began):
            while reply[0] == b"error":
                text = reply[1].decode(errors="replace")
                if shard == home and (moved := _MOVED.fullmatch(text)) and int(moved[1]) < self._shards:
                    shard = int(moved[1])
                elif self._scripts.servers.several and is_moving(text):
                    await asyncio.sleep(MOVING_SECONDS)
                else:
                    break
                reply = await self._arrival(script, self._submit(script, shard, operation))
        return self._checked(reply)

    def _arrival(self, script: str, future: asyncio.Future[T]) -> Awaitable[T]:
        return future if self._observer.trace is None else self._traced(self._observer.trace(script), future)

    async def _traced(self, span: AbstractContextManager[object], future: asyncio.Future[T]) -> T:
        with span:
            return await future

    def _checked(self, reply: Reply) -> Reply:
        if reply[0] == b"error":
            error = self._scripts.refused(reply[1].decode(errors="replace"))
            self._observer.failed(error)
            raise error
        return reply

    def _submit(self, script: str, shard: int, operation: Operation) -> asyncio.Future[Reply]:
        batcher = self._batchers.get((script, shard))
        if batcher is None:
            batcher = self._batchers[script, shard] = Batcher(
                self._carrier(script, shard), self._scripts.timeout, partial(self._observer.landed, script)
            )
        try:
            return batcher.submit(operation)
        except StoreUnavailable as error:
            self._observer.failed(error)
            raise

    def _carrier(self, script: str, number: int) -> Carrier:
        shard = self._scripts.shards[number]
        if self._embedded:
            return ClientCarrier(self._scripts, script, shard)
        return PipeCarrier(self._scripts, script, shard)


def _optional(text: str | None) -> str:
    """A text that may be absent, as the scripts take it: '' for none, '=' and the text (which may be '') for one."""
    return "" if text is None else "=" + text


def _beat(reply: Reply) -> Beat:
    return Beat(int(reply[1]), reply[2] != b"")


def _unexpected(reply: Reply) -> StoreFault:
    return StoreFault(f"the store answered {reply[0]!r}, which this version does not know")
