"""What all tests share: the backends, a namespace of one's own, and pods to open on them."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from tests.redis_cluster import RedisCluster, running_cluster
from tests.redis_server import RedisServer, running_redis
from tracker.settings import Settings
from tracker.store.store import Store, open_store

SERVERS = {"redis": "server", "cluster": "cluster"}

OpenPod = Callable[..., AbstractAsyncContextManager[Store]]


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell that starts us in the background means that for us, not for the commands that we send a Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "settings(**fields): what this test's `settings` have other than by default")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The real Redis that tests share, each in its namespace; those that harm a server start one of their own."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """The cluster that tests share, each in its namespace; those that harm a cluster start one of their own."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "redis", "cluster"])
def backend(request: pytest.FixtureRequest) -> str:
    """Parametrize it yourself to run on one of them only."""
    return str(request.param)


@pytest.fixture
def store_url(backend: str, request: pytest.FixtureRequest) -> str:
    if backend == "memory":
        return "memory://"
    server: RedisServer | RedisCluster = request.getfixturevalue(f"redis_{SERVERS[backend]}")
    return server.url


@pytest.fixture
def namespace() -> str:
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
def shards() -> int:
    """Parametrize it where the number matters."""
    return 1


@pytest.fixture
def settings(store_url: str, namespace: str, shards: int, request: pytest.FixtureRequest) -> Settings:
    """Settings of a pod on the test's backend. The store's deadline is long, for machines under load."""
    fields: dict[str, Any] = {"store_timeout_seconds": 10}
    for marker in reversed(list(request.node.iter_markers("settings"))):
        fields |= marker.kwargs
    return Settings(**{"store_url": store_url, "namespace": namespace, "shards": shards, **fields})


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    async with open_store(settings) as opened:
        yield opened


@pytest.fixture
def open_pod(settings: Settings, store: Store) -> OpenPod:
    """Opens a further pod on the test's store: ``async with open_pod(ttl_seconds=5) as pod``.

    It has its own connections, but on the embedded backend, where sharing the client is sharing the data.
    """

    def opened(**fields: Any) -> AbstractAsyncContextManager[Store]:
        pod_settings = Settings(**{**dict(iter(settings)), **fields})
        return open_store(pod_settings, store.scripts.client if settings.in_memory else None)

    return opened


@pytest.fixture
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop complains of during the test. All tests share the loop: the next complains for itself."""
    loop = asyncio.get_running_loop()
    heard: list[dict[str, Any]] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    yield heard
    loop.set_exception_handler(before)
