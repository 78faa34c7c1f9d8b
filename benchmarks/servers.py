"""What is measured: the tracker, its baselines, and etcd where it is installed. Each on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.process import Process, free_port
from benchmarks.redis_cluster import RedisCluster
from benchmarks.redis_server import RedisServer

__all__ = ["BASELINES", "LEASES", "Server", "etcd_is_installed", "running_etcd", "running_server"]

BASELINES = ("noop", "raw", "plain")
SWEEP_INTERVAL_SECONDS = "60"
"""The longest there is: a sweep within a run would be noise."""
LEASES = range(1_000_000, 1_001_000)
"""What an etcd of ours holds: ids of equal length."""
OURS = ("API_KEY", "REDIS_URL")


@dataclass(frozen=True)
class Server:
    """``key`` is the API key that it takes, if any; ``redis`` whose processor time its requests cost too."""

    port: int
    process: Process
    key: str = ""
    redis: RedisServer | RedisCluster | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What every request to it must carry."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def client(self) -> httpx.Client:
        """For single calls outside of what is measured."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers=self.headers,
            timeout=60,
            trust_env=False,
        )


@contextmanager
def running_server(
    kind: str, directory: Path, redis: RedisServer | RedisCluster, workers: int = 1, shards: int = 1
) -> Iterator[Server]:
    """The tracker, or one of BASELINES. Like in production it has a key to check. Raises StartError."""
    port, key = free_port(), secrets.token_urlsafe(24)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRACKER_")}
    environment = {name: value for name, value in inherited.items() if name not in OURS} | {
        "TRACKER_HOST": "127.0.0.1",
        "TRACKER_PORT": str(port),
        "TRACKER_WORKERS": str(workers),
        "TRACKER_STORE_URL": redis.url,
        "TRACKER_SHARDS": str(shards),
        "TRACKER_API_KEYS": key,
        "TRACKER_SWEEP_INTERVAL_SECONDS": SWEEP_INTERVAL_SECONDS,
        "TRACKER_LOG_LEVEL": "warning",
    }
    what = ["tracker", "serve"] if kind == "tracker" else ["benchmarks.serving", kind]
    with Process([sys.executable, "-m", *what], directory / f"{kind}-{port}.log", environment) as process:
        server = Server(port, process, key, redis if kind in ("tracker", "plain") else None)
        process.wait_until(lambda: _answers(server, "/health"))
        yield server


def etcd_is_installed() -> bool:
    return shutil.which("etcd") is not None


@contextmanager
def running_etcd(directory: Path) -> Iterator[Server]:
    """An etcd with nothing in it but leases. Raises StartError."""
    port = free_port()
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    words = ["etcd", "--name", "etcd", "--data-dir", str(directory / f"etcd-{port}"), "--log-level", "error"]
    words += ["--listen-client-urls", client, "--advertise-client-urls", client]
    words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"etcd={peer}"]
    with Process(words, directory / f"etcd-{port}.log") as process:
        server = Server(port, process)
        process.wait_until(lambda: _answers(server, "/health", 200))
        with server.client() as caller:
            for lease in LEASES:
                caller.post("/v3/lease/grant", json={"TTL": 3600, "ID": lease}).raise_for_status()
        yield server


def _answers(server: Server, path: str, status: int | None = None) -> bool:
    try:
        with server.client() as client:
            return status in (None, client.get(path).status_code)
    except httpx.TransportError:
        return False
