"""SentinelUrl: the address of a store behind Redis Sentinel, taken apart. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from tracker.hosts_url import HostsUrl

__all__ = ["SENTINEL_PORT", "SENTINEL_SCHEMES", "SentinelUrl"]

SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379

EXAMPLE = "redis+sentinel://host1:26379,host2,host3/mymaster/0"
NAME = re.compile(r"[A-Za-z0-9._-]+")


class SentinelUrl(NamedTuple):
    """``redis+sentinel://[user:password@]host[:port],.../<master name>[/db][?parameter=...]``

    User and password are those of the master and its replicas; the sentinels' own come as parameters. ``parameters``
    are the names and values behind the question mark, which nobody has judged yet. ``tls``: to sentinels and master.
    """

    tls: bool
    username: str | None
    password: str | None
    sentinels: tuple[tuple[str, int], ...]
    master: str
    database: int
    parameters: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError with one sentence that quotes nothing: any part of a mistyped URL may be a password."""
        url = HostsUrl.parse(text, example=EXAMPLE, servers="sentinels", port=SENTINEL_PORT)
        master, slash, database = url.path.partition("/")
        if not NAME.fullmatch(master):
            raise ValueError(f"must name the master that the sentinels watch, as in {EXAMPLE}")
        if slash and not re.fullmatch(r"[0-9]{1,4}", database):
            raise ValueError(f"must name its database by a number, as in {EXAMPLE}")
        return cls(
            tls=url.tls,
            username=url.username,
            password=url.password,
            sentinels=url.hosts,
            master=master,
            database=int(database or 0),
            parameters=url.parameters(),
        )
