"""SentinelUrl: the address of a store behind Redis Sentinel, taken apart. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple, Self
from urllib.parse import parse_qsl, unquote

__all__ = ["SENTINEL_PORT", "SENTINEL_SCHEMES", "SentinelUrl"]

SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379

EXAMPLE = "redis+sentinel://host1:26379,host2,host3/mymaster/0"
PLACE = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")
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
        scheme, _, rest = text.partition("://")
        rest, _, query = rest.partition("?")
        login, at, rest = rest.rpartition("@")
        places, _, path = rest.partition("/")
        # A password that is not encoded puts what follows its special character into any of these.
        if "#" in text or "/" in login or "@" in login or "@" in query:
            raise ValueError(f"must be a URL such as {EXAMPLE}, with special characters in passwords percent-encoded")
        sentinels = tuple(_place(place) for place in places.split(","))
        master, slash, database = path.partition("/")
        if not NAME.fullmatch(master):
            raise ValueError(f"must name the master that the sentinels watch, as in {EXAMPLE}")
        if slash and not re.fullmatch(r"[0-9]{1,4}", database):
            raise ValueError(f"must name its database by a number, as in {EXAMPLE}")
        try:
            parameters = tuple(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        except ValueError:
            raise ValueError("must have its parameters as name=value, separated by &") from None
        username, _, password = login.partition(":")
        return cls(
            tls=scheme == "rediss+sentinel",
            username=unquote(username) or None,
            password=unquote(password) or None if at else None,
            sentinels=sentinels,
            master=master,
            database=int(database or 0),
            parameters=parameters,
        )


def _place(text: str) -> tuple[str, int]:
    match = PLACE.fullmatch(text)
    port = int(match["port"] or SENTINEL_PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise ValueError(f"must list the sentinels as host or host:port, comma-separated, as in {EXAMPLE}")
    return match["host"].strip("[]"), port
