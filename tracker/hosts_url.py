"""HostsUrl: a URL that names several servers at once, which no library takes apart. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple, Self
from urllib.parse import parse_qsl, unquote

__all__ = ["HostsUrl"]

PLACE = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")


class HostsUrl(NamedTuple):
    """``scheme://[user:password@]host[:port],...[/path][?query]``, with TLS where the scheme begins with ``rediss``."""

    tls: bool
    username: str | None
    password: str | None
    hosts: tuple[tuple[str, int], ...]
    path: str
    query: str

    @classmethod
    def parse(cls, text: str, *, example: str, servers: str, port: int) -> Self:
        """Raises ValueError with one sentence that quotes nothing: any part of a mistyped URL may be a password.

        ``example`` and ``servers`` (what the hosts are) are for that sentence; ``port``: where none is named.
        """
        scheme, _, rest = text.partition("://")
        rest, _, query = rest.partition("?")
        login, at, rest = rest.rpartition("@")
        places, _, path = rest.partition("/")
        # A password that is not encoded puts what follows its special character into any of these.
        if "#" in text or "/" in login or "@" in login or "@" in query:
            raise ValueError(f"must be a URL such as {example}, with special characters in passwords percent-encoded")
        hosts = [_host(place, port) for place in places.split(",")]
        found = tuple(host for host in hosts if host is not None)
        if len(found) < len(hosts):
            raise ValueError(f"must list the {servers} as host or host:port, comma-separated, as in {example}")
        username, _, password = login.partition(":")
        return cls(
            tls=scheme.startswith("rediss"),
            username=unquote(username) or None,
            password=unquote(password) or None if at else None,
            hosts=found,
            path=path,
            query=query,
        )

    def parameters(self) -> tuple[tuple[str, str], ...]:
        """The names and values behind the question mark. Raises ValueError as ``parse``."""
        try:
            return tuple(parse_qsl(self.query, keep_blank_values=True, strict_parsing=bool(self.query)))
        except ValueError:
            raise ValueError("must have its parameters as name=value, separated by &") from None


def _host(text: str, port: int) -> tuple[str, int] | None:
    """None where it is none."""
    match = PLACE.fullmatch(text)
    number = int(match["port"] or port) if match else 0
    return (match["host"].strip("[]"), number) if match and 0 < number < 65536 else None
