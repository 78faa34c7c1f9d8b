"""Between a session's hash in Redis and the session on the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache

from pydantic_core import PydanticSerializationError, from_json, to_json

from tracker.models import CreateSession, Session

__all__ = ["FIELDS", "Values", "decode", "encode", "escape", "quoting", "seconds", "timestamp", "write"]

Values = Sequence[bytes | None]
"""A hash's values in the order of FIELDS; all of them None where there is no such hash."""

FIELDS = (
    "agent",
    "task",
    "trigger",
    "inbox",
    "about",
    "started",
    "due",
    "ttl",
    "runner",
    "provider",
    "runtime",
    "progress",
    "stop",
    "meta",
)
"""The fields of a session's hash, in the order of the session on the wire."""
_FIELD_BYTES = tuple(field.encode() for field in FIELDS)
_MILLISECONDS = tuple(f".{ms:03d}Z" for ms in range(1000))

_NULL = b"null"
_OBJECT = b"{%b}" % b",".join(b'"%b":%%b' % name.encode() for name in Session.__annotations__)
_QUOTED_MILLISECONDS = tuple(b'%b"' % text.encode() for text in _MILLISECONDS)


@lru_cache(maxsize=8192)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=8192)
def _quoted_second(second: int) -> bytes:
    return b'"%b' % _second(second).encode()


@lru_cache(maxsize=8192)
def _life(ttl: bytes | None) -> tuple[int, bytes]:
    """A TTL in milliseconds, and in seconds as JSON: a fleet knows few different ones."""
    ms = int(ttl or 0)
    return ms, to_json(seconds(ms))


def timestamp(ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 in UTC."""
    return _second(ms // 1000) + _MILLISECONDS[ms % 1000]


def seconds(ms: int) -> float:
    """Milliseconds as seconds: a whole number where it is one, as JSON shows the difference."""
    return ms // 1000 if ms % 1000 == 0 else ms / 1000


def encode(request: CreateSession) -> list[str | bytes]:
    """The hash fields, as field, value, ..., that a create brings along besides agent, trigger, task and times."""
    texts = (
        ("inbox", request.inbox_message_id),
        ("about", request.task_description),
        ("runner", request.runner_session_id),
        ("runtime", request.runtime_instance_id),
    )
    flat: list[str | bytes] = []
    for field, text in texts:
        if text is not None:
            flat += (field, text)
    if request.metadata:
        flat += ("meta", to_json(request.metadata))
    return flat


def decode(session_id: bytes, flat: Sequence[bytes]) -> Session:
    """The session of an id and its hash as field, value, ...; other fields among them are passed over."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    session: Session = from_json(write(session_id, [fields.get(field) for field in _FIELD_BYTES], escape))
    return session


def quoting(rows: Iterable[Values]) -> Callable[[bytes], bytes]:
    """What makes JSON of the texts in these hashes.

    Hardly any text needs more than quotes around it, and one look at all of them costs far less than to escape each.
    """
    texts = b" ".join([b" ".join(filter(None, values[:-1])) for values in rows])
    try:
        return _quote if len(to_json(texts)) == len(texts) + 2 else escape
    except PydanticSerializationError:  # somebody else has written what is no text
        return escape


def escape(text: bytes) -> bytes:
    """A text as JSON; what is no text in it has U+FFFD in its place."""
    return to_json(text.decode(errors="replace"))


_quote = b'"%b"'.__mod__


def write(session_id: bytes, values: Values, quote: Callable[[bytes], bytes] = escape) -> bytes:
    """The session of an id and its hash's values, as JSON. ``quote`` makes JSON of its texts: see ``quoting``.

    All that is left of a session that outlived its grace unswept is its id and its start; the rest reads as empty.
    """
    agent, task, trigger, inbox, about, started, due, ttl, runner, provider, runtime, progress, stop, meta = values
    begun = int(started or 0)
    deadline = begun if due is None else int(due)
    life, life_seconds = _life(ttl)
    beat = deadline - life
    return _OBJECT % (
        quote(session_id),
        quote(agent or b""),
        _NULL if task is None else quote(task),
        quote(trigger or b""),
        _NULL if inbox is None else quote(inbox),
        _NULL if about is None else quote(about),
        _quoted_second(begun // 1000) + _QUOTED_MILLISECONDS[begun % 1000],
        _quoted_second(beat // 1000) + _QUOTED_MILLISECONDS[beat % 1000],
        _NULL if runner is None else quote(runner),
        _NULL if provider is None else quote(provider),
        _NULL if runtime is None else quote(runtime),
        life_seconds,
        _quoted_second(deadline // 1000) + _QUOTED_MILLISECONDS[deadline % 1000],
        _NULL if progress is None else quote(progress),
        _NULL if stop is None else quote(timestamp(int(stop)).encode()),
        meta or b"{}",
    )
