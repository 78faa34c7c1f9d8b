"""ClusterUrl: the address of a store on a Redis Cluster, taken apart. No I/O."""

from __future__ import annotations

from typing import NamedTuple, Self

from tracker.hosts_url import HostsUrl

__all__ = ["CLUSTER_SCHEMES", "ClusterUrl"]

CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
CLUSTER_PORT = 6379

EXAMPLE = "redis+cluster://host1:6379,host2,host3"


class ClusterUrl(NamedTuple):
    """``redis+cluster://[user:password@]host[:port],...[?parameter=...]``

    User and password are those of every node. ``nodes``: where to begin; the cluster names the others. ``parameters``
    are the names and values behind the question mark, which nobody has judged yet.
    """

    tls: bool
    username: str | None
    password: str | None
    nodes: tuple[tuple[str, int], ...]
    parameters: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError with one sentence that quotes nothing: any part of a mistyped URL may be a password."""
        url = HostsUrl.parse(text, example=EXAMPLE, servers="nodes", port=CLUSTER_PORT)
        if url.path not in ("", "0"):
            raise ValueError("must name no database: a Redis Cluster has only one")
        return cls(
            tls=url.tls,
            username=url.username,
            password=url.password,
            nodes=url.hosts,
            parameters=url.parameters(),
        )
