"""Content negotiation: which of the media types on offer a client likes best (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["negotiate"]

_RANGE = re.compile(r"([!#$%&'*+.^_`|~\w-]+)/([!#$%&'*+.^_`|~\w-]+)", re.ASCII)
_QUALITY = re.compile(r"(0(\.[0-9]{0,3})?|1(\.0{0,3})?)")


def negotiate(accept: str, offers: Sequence[str]) -> str:
    """The best liked of the offers, of several the first; so too where nothing is said, or none of them is liked.

    The most specific range that fits an offer says how much it is liked.
    """
    ranges: dict[str, float] = {}
    for entry in accept.lower().split(","):
        media_range, *parameters = (part.strip(" \t") for part in entry.split(";"))
        if _RANGE.fullmatch(media_range):
            ranges[media_range] = max(ranges.get(media_range, 0), _quality(parameters))
    return max(offers, key=lambda offer: _liking(offer, ranges))


def _liking(offer: str, ranges: dict[str, float]) -> float:
    for media_range in (offer, offer.partition("/")[0] + "/*", "*/*"):
        if media_range in ranges:
            return ranges[media_range]
    return 0


def _quality(parameters: list[str]) -> float:
    """1 where none is given. One that is malformed counts as none."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q" and _QUALITY.fullmatch(value.strip()):
            return float(value)
    return 1
