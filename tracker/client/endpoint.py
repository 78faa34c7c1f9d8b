"""Where the tracker is, and the key that opens it: from arguments, else from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import httpx

from tracker import __version__
from tracker.client.errors import Misconfigured
from tracker.settings import VISIBLE_ASCII

__all__ = ["DEFAULT_URL", "Endpoint"]

DEFAULT_URL = "http://localhost:3013"


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
        except httpx.InvalidURL as error:
            raise Misconfigured(f"The tracker's URL cannot be used: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
            raise Misconfigured("The tracker's URL must be one such as http://localhost:3013")
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
