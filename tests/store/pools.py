"""The connection pool that the store opens for given settings."""

from __future__ import annotations

from redis.asyncio import BlockingConnectionPool, Redis

from tracker.settings import Settings
from tracker.store.connection import connect

__all__ = ["pool_for", "pool_of"]


def pool_of(client: Redis) -> BlockingConnectionPool:
    pool = client.connection_pool
    assert isinstance(pool, BlockingConnectionPool)
    return pool


def pool_for(url: str, timeout: float = 1) -> BlockingConnectionPool:
    return pool_of(connect(Settings(store_url=url, store_timeout_seconds=timeout)))
