"""The dashboard at /: plain files, read once and sent as they are. No build step, nothing from other hosts."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

__all__ = ["FILES", "HEADERS", "PAGE", "File"]

MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}

HEADERS: Mapping[str, str] = {
    # Everything that a session brings is made text by the page; should that ever fail, no markup of it can do anything.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
"""What each of them is to be sent with."""


class File(NamedTuple):
    """A file's content and its media type."""

    content: bytes
    media_type: str


FILES: Mapping[str, File] = {
    file.name: File(file.read_bytes(), media_type)
    for file in files(__name__).iterdir()
    if (media_type := MEDIA_TYPES.get("." + file.name.rpartition(".")[2]))
}
"""By name."""

PAGE = FILES["index.html"]
