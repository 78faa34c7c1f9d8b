"""What we ask of the driver: how to reach the store, and what its errors mean to us.

``memory://`` is fakeredis inside the process, everything else redis-py. The defaults of its release 8 are not ours: it
would retry writes, wait for ten seconds, and skip the check that keeps a late reply from reaching another caller.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from fakeredis import FakeAsyncRedis, FakeServer
from redis import exceptions as driver
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from tracker.cluster_url import ClusterUrl
from tracker.errors import StoreError, StoreFault, StoreUnavailable
from tracker.sentinel_url import SENTINEL_SCHEMES, SentinelUrl
from tracker.settings import Settings
from tracker.store.sentinel import MasterPool, Sentinels

__all__ = ["POOL_CONNECTIONS", "Address", "connect", "connect_listener", "connect_node", "fault_of", "translated"]

Address = tuple[str, int]

POOL_CONNECTIONS = 64
"""To one server."""
READ_BYTES = 256 * 1024
"""A chunk of a listing is some 100 KB: read it in one go."""

TRANSIENT = re.compile(
    r"\b(READONLY|LOADING|BUSY|MISCONF|NOREPLICAS|MOVED|ASK|TRYAGAIN|CLUSTERDOWN|MASTERDOWN|OOM|UNKILLABLE|UNBLOCKED"
    r"|NOAUTH|NOPERM|WRONGPASS|unauthenticated|NOMASTERLINK|max number of clients"
    r"|non local key|cluster is down)\b"
)
"""What Redis says while it cannot, but may soon. Before Redis 7 it stands inside an error of the script.

A key is non local to a script while its slot is being moved: it has left, or is not there at all.
"""


NOT_NOW = (
    driver.AskError,
    driver.ClusterDownError,
    driver.NoPermissionError,
    driver.OutOfMemoryError,
    driver.ReadOnlyError,
    driver.TryAgainError,
)
"""The same where the driver has a class for it, and has cut the word off the text."""
OURS = (
    driver.ChildDeadlockedError,
    driver.CrossSlotTransactionError,
    driver.IncorrectPolicyType,
    driver.InvalidPipelineStack,
)
"""What only a wrong use of the driver raises."""


def connect(settings: Settings) -> Redis:
    """A client for a store that is one server at a time. Connects at the first call, and again after each failure;
    retries nothing.
    """
    if settings.in_memory:
        return _embedded(settings.store_timeout_seconds)
    return _remote(settings, POOL_CONNECTIONS, settings.store_timeout_seconds)


def connect_listener(settings: Settings, block_seconds: float) -> Redis:
    """A client with one connection, for calls that Redis itself may hold for so long. Not for the embedded store."""
    return _remote(settings, 1, settings.store_timeout_seconds + block_seconds)


def connect_node(settings: Settings, address: Address, connections: int, patience: float) -> Redis:
    """A client for one node of a cluster; each step of a call may take ``patience`` seconds."""
    url = ClusterUrl.parse(settings.store_url)
    place = _place(url.tls, url.parameters)
    login = {"host": address[0], "port": address[1], "username": url.username, "password": url.password}
    timeout = min(patience, settings.store_timeout_seconds)
    options = {"max_connections": connections, "socket_timeout": patience}
    return _client(_pool({**place, **login, **options}, timeout))


def _remote(settings: Settings, connections: int, patience: float) -> Redis:
    options = {"max_connections": connections, "socket_timeout": patience}
    if settings.store_url.partition("://")[0] in SENTINEL_SCHEMES:
        pool: BlockingConnectionPool = _behind_sentinels(settings, options)
    else:
        pool = _pool({**parse_url(settings.store_url), **options}, settings.store_timeout_seconds)
    return _client(pool)


def _client(pool: BlockingConnectionPool) -> Redis:
    if pool.maint_notifications_enabled():  # type: ignore[no-untyped-call]
        raise RuntimeError("redis-py would hand a late reply to the next caller: its check for unread data is off")
    return Redis.from_pool(pool)  # which closes the pool with the client


def _options(timeout: float) -> dict[str, Any]:
    """What we ask of every connection and pool; each step may take as long as the whole."""
    return {
        "max_connections": POOL_CONNECTIONS,
        "timeout": timeout,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "socket_read_size": READ_BYTES,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "health_check_interval": 0,
        "driver_info": None,  # or each connection begins with two more calls, which Redis before 7.2 refuses
        "decode_responses": False,
    }


def _pool(place: Mapping[str, Any], timeout: float) -> BlockingConnectionPool:
    options = {**_options(timeout), **place}
    if "path" in place:
        del options["maint_notifications_config"]
    return BlockingConnectionPool(**options)


def _place(tls: bool, parameters: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What URLs say of TLS and the client's name, each read by redis-py in its way."""
    return dict(parse_url(f"{'rediss' if tls else 'redis'}://?{urlencode(list(parameters))}"))


def _behind_sentinels(settings: Settings, options: Mapping[str, Any]) -> MasterPool:
    url = SentinelUrl.parse(settings.store_url)
    parameters = dict(url.parameters)
    sentinel_login = {name: parameters.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    place = _place(url.tls, parameters.items())
    timeout = settings.store_timeout_seconds
    # Half of the time is for finding the master, so that some is left to call it.
    clients = [
        Redis.from_pool(_pool({**place, **sentinel_login, "host": host, "port": port}, timeout / 2))
        for host, port in url.sentinels
    ]
    place.pop("connection_class", None)
    login = {"username": url.username, "password": url.password, "db": url.database}
    sentinels = Sentinels(url.master, clients, timeout / 2)
    return MasterPool(sentinels, tls=url.tls, **{**_options(timeout), **place, **login, **options})


def _embedded(timeout: float) -> Redis:
    """A store of its own inside the process; as with a real one, callers wait for a connection instead of failing."""
    model = FakeAsyncRedis(protocol=2, server=FakeServer()).connection_pool
    return Redis.from_pool(
        BlockingConnectionPool(
            max_connections=POOL_CONNECTIONS,
            timeout=timeout,
            connection_class=model.connection_class,
            **model.connection_kwargs,
        )
    )


def fault_of(text: str) -> StoreError:
    """The error that Redis means by a text."""
    if TRANSIENT.search(text):
        return StoreUnavailable(f"the store cannot do that now: {text}")
    return StoreFault(f"the store refused: {text}")


@contextmanager
def translated() -> Iterator[None]:
    """Turns whatever the driver raises into a StoreError."""
    try:
        yield
    except NOT_NOW as error:
        raise StoreUnavailable(f"the store cannot do that now: {error}") from error
    except (driver.ResponseError, *OURS) as error:
        raise fault_of(str(error) or type(error).__name__) from error
    except (TimeoutError, driver.TimeoutError) as error:
        raise StoreUnavailable("the store did not answer in time") from error
    except (driver.RedisError, driver.RedisClusterException, OSError, EOFError, asyncio.IncompleteReadError) as error:
        # Connection and protocol errors alike mean: no answer to be trusted.
        raise StoreUnavailable(f"the store cannot be reached: {str(error) or type(error).__name__}") from error
