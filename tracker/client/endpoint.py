"""Where the tracker is, and the key that opens it: from arguments, else from the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self, TypeVar

import httpx

from tracker import __version__
from tracker.client.errors import Misconfigured
from tracker.settings import VISIBLE_ASCII, can_be_looked_up

__all__ = ["DEFAULT_URL", "Endpoint"]

DEFAULT_URL = "http://localhost:3013"

Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``url`` without a slash at its end; it may have a path, where a proxy serves the tracker below one."""

    url: str
    api_key: str | None = field(repr=False)

    @classmethod
    def find(cls, url: str | None, api_key: str | None, environ: Mapping[str, str] | None = None) -> Self:
        """What is given, else TRACKER_URL and TRACKER_API_KEY; an empty variable counts as not set.

        Raises Misconfigured for what cannot be used. No message holds the key.
        """
        environ = os.environ if environ is None else environ
        url = (environ.get("TRACKER_URL") or DEFAULT_URL) if url is None else url
        api_key = (environ.get("TRACKER_API_KEY") or None) if api_key is None else api_key
        try:
            parsed = httpx.URL(url.strip())
            host = parsed.host
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Misconfigured(f"The tracker's URL cannot be used: {error}") from None
        if parsed.scheme not in ("http", "https") or not host or "?" in url or "#" in url:
            raise Misconfigured("The tracker's URL must be one such as http://localhost:3013")
        if not can_be_looked_up(parsed.raw_host.decode("ascii")):
            raise Misconfigured("The tracker's URL has a host that is no name: between dots are 1 to 63 characters")
        if parsed.port is not None and not 1 <= parsed.port <= 65535:
            raise Misconfigured("The tracker's URL has a port that is none: they go from 1 to 65535")
        if parsed.userinfo:
            # httpx would send it in place of the key.
            raise Misconfigured("The tracker's URL must not hold a user or password: give the API key on its own")
        if api_key is not None:
            api_key = api_key.strip()
            if not VISIBLE_ASCII.fullmatch(api_key):
                raise Misconfigured("The API key must be visible ASCII characters, without spaces")
        return cls(str(parsed).rstrip("/"), api_key)

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        named = {"User-Agent": f"tracker-client/{__version__}", "Accept": "application/json"}
        return named | ({"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})

    def open(self, kind: Callable[..., Http], transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None) -> Http:
        """A client of httpx, which takes proxies and certificates from the environment. Raises Misconfigured."""
        try:
            return kind(headers=self.headers, transport=transport)
        except (httpx.InvalidURL, ImportError, ValueError, OSError) as error:
            problem = f"What the environment says of proxies or certificates cannot be used: {error}"
            raise Misconfigured(problem) from error
