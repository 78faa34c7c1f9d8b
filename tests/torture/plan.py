"""Plan: what a run is made of. The settings of the pods are here, because the checker knows the rules by them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """Durations in seconds. ``pods`` are the ports of 127.0.0.1 that pods listen on."""

    seed: int
    seconds: float
    store_url: str
    pods: tuple[int, ...]
    namespace: str = "torture"
    workers: int = 2
    clients: int = 8
    shards: int = 2
    ttl: float = 30
    """The default, and so the longest hold: longer than any outage that the nemesis makes."""
    sweep_interval: float = 1
    patience: float = 3
    """Three pulses: see ``tracker/store/sweeper.py``."""
    store_timeout: float = 1
    call_timeout: float = 6
    """When clients give up: later than a pod may answer, or a late answer would look like a lost one."""

    @classmethod
    def for_cluster(cls, seed: int, seconds: float, store_url: str, pods: tuple[int, ...]) -> Self:
        """Enough shards that each master has some."""
        return cls(seed, seconds, store_url, pods, shards=16)

    @property
    def on_cluster(self) -> bool:
        return self.store_url.startswith("redis+cluster:")

    @property
    def environment(self) -> dict[str, str]:
        """What makes a pod of this plan, but for its port."""
        return {
            "TRACKER_STORE_URL": self.store_url,
            "TRACKER_NAMESPACE": self.namespace,
            "TRACKER_WORKERS": str(self.workers),
            "TRACKER_SHARDS": str(self.shards),
            "TRACKER_TTL_SECONDS": str(self.ttl),
            "TRACKER_SWEEP_INTERVAL_SECONDS": str(self.sweep_interval),
            "TRACKER_STORE_TIMEOUT_SECONDS": str(self.store_timeout),
            "TRACKER_FEED_LENGTH": "10000000",  # all of it: the checker reads the whole history
        }

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self:
        fields = json.loads(path.read_text())
        return cls(**{**fields, "pods": tuple(fields["pods"])})
