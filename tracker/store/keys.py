"""Every key in Redis: made here, and this docstring is the schema (version 1).

All keys of one shard carry its hash tag, ``{ns:shard}``, so that each script touches one slot of a Redis Cluster.

=================  ==========  ======================================================================================
key                type        what it holds
=================  ==========  ======================================================================================
session:<id>       hash        one session; TTL: the session's plus the grace, renewed with each heartbeat
task:<taskId>      string      id of the task's session; TTL as its session's or up to one of its TTLs more
sessions           sorted set  ids by start (ms): the order of listings; TTL at least as the longest session's
deadlines          sorted set  ids by deadline (ms): what to sweep; TTL as above
agent:<agentId>    sorted set  ids of one agent's sessions by start (ms); TTL as above
agents             sorted set  agents by their number of sessions; TTL as above
triggers           sorted set  trigger types by their number of sessions; TTL as above
counters           hash        ``created``, ``ended:<reason>`` and ``parked``: how many ever
events             stream      the change feed: type, at (ms), reason, id, then the session's hash as it was
idem:<key>         hash        what an Idempotency-Key made: ``fingerprint`` of the body, ``id``, the session; TTL 24 h
                               (a claim, in the key's own shard: ``fingerprint`` and ``claims``, how many count)
hooks              sorted set  ids of events that a webhook is to be told of by when that is due (ms)
hook:<eventId>     hash        such an event, copied from the feed, and ``attempt``; TTL 2 days from the last attempt
                               on, once given up 7
parked             sorted set  the newest 1,000 that were given up by when that was (ms)
clock              hash        ``pulse`` (ms: when a pod was there last), ``patience`` (ms), ``swept`` (ms: the last
                               sweep); of the last outage ``held`` and ``resumed`` (ms: from, to), ``hold_end`` (ms)
schema             hash        ``version`` and ``shards``: how this store is laid out; ``4>16`` while that changes
moved:<id>         string      the shard of a session that a reshard has taken from the one in its id; TTL 30 days,
                               renewed when somebody asks for that id
=================  ==========  ======================================================================================

Session hash fields, absent where the session has none: ``agent task trigger inbox about started due ttl runner provider
runtime progress stop meta``. ``started``, ``due`` (the deadline) and ``stop``: ms since 1970 by the store's clock;
``ttl``: ms; ``meta``: JSON. The last heartbeat is ``due - ttl``. Names are short because every session pays for them.
"""

from __future__ import annotations

__all__ = ["SCHEMA_VERSION", "Shard"]

SCHEMA_VERSION = 1


class Shard:
    """The keys of one shard. Scripts take ``declared`` as KEYS, in this order, and make the others from ``prefix``."""

    __slots__ = ("declared", "events", "number", "prefix")

    def __init__(self, namespace: str, number: int) -> None:
        self.number = number
        self.prefix = f"{{{namespace}:{number}}}:"
        self.events = self.prefix + "events"
        self.declared = tuple(
            self.prefix + name
            for name in ("clock", "sessions", "deadlines", "agents", "triggers", "counters", "events")
        )
