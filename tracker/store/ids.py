"""Session ids: UUIDv7 (RFC 9562) whose first twelve random bits are the session's shard.

The time in them is the store's, so the creating script writes it; here is made the rest. Sixty-two random bits in each
millisecond and shard remain.
"""

from __future__ import annotations

import re
import secrets
import zlib

from tracker.models import SESSION_ID_PATTERN

__all__ = ["MAX_SHARDS", "make_tail", "shard_of_id", "shard_of_text"]

MAX_SHARDS = 4096

_SESSION_ID = re.compile(SESSION_ID_PATTERN)


def make_tail(shard: int) -> str:
    """The last 21 characters of a new id: version, shard, variant and randomness."""
    noise = f"{secrets.randbits(62) | 1 << 63:016x}"
    return f"7{shard:03x}-{noise[:4]}-{noise[4:]}"


def shard_of_id(session_id: str, shards: int) -> int | None:
    """The shard of a session with that id; None when the tracker cannot have made such an id."""
    if not _SESSION_ID.fullmatch(session_id):
        return None
    shard = int(session_id[15:18], 16)
    return shard if shard < shards else None


def shard_of_text(text: str, shards: int) -> int:
    """Where sessions of a task (or, without one, of an Idempotency-Key) live. The same in every process and version."""
    return zlib.crc32(text.encode()) % shards
