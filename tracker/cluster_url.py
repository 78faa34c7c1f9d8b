"""ClusterUrl: the address of a store on a Redis Cluster, taken apart. No I/O."""

from __future__ import annotations

from typing import NamedTuple, Self
from urllib.parse import parse_qsl, unquote

from tracker.sentinel_url import PLACE

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
        scheme, _, rest = text.partition("://")
        rest, _, query = rest.partition("?")
        login, at, rest = rest.rpartition("@")
        places, slash, database = rest.partition("/")
        # A password that is not encoded puts what follows its special character into any of these.
        if "#" in text or "/" in login or "@" in login or "@" in query:
            raise ValueError(f"must be a URL such as {EXAMPLE}, with special characters in passwords percent-encoded")
        nodes = tuple(_place(place) for place in places.split(","))
        if slash and database not in ("", "0"):
            raise ValueError("must name no database: a Redis Cluster has only one")
        try:
            parameters = tuple(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        except ValueError:
            raise ValueError("must have its parameters as name=value, separated by &") from None
        username, _, password = login.partition(":")
        return cls(
            tls=scheme == "rediss+cluster",
            username=unquote(username) or None,
            password=unquote(password) or None if at else None,
            nodes=nodes,
            parameters=parameters,
        )


def _place(text: str) -> tuple[str, int]:
    match = PLACE.fullmatch(text)
    port = int(match["port"] or CLUSTER_PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise ValueError(f"must list the nodes as host or host:port, comma-separated, as in {EXAMPLE}")
    return match["host"].strip("[]"), port
