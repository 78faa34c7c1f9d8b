"""Who may call: the keys, and the middleware that asks for one on everything below /api."""

import hashlib
import hmac
import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as ASGIScope

from tracker.settings import NAME, ApiKey, Scope, Settings, SettingsError, label_of, quoted

READING = frozenset({"GET", "HEAD", "OPTIONS"})
SCOPES: dict[str, Scope] = {"read": "read", "write": "write"}
CHECK_SECONDS = 1.0
LARGEST_FILE_BYTES = 1024 * 1024

DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")

logger = logging.getLogger("tracker.api")

Stamp = tuple[int, ...]


class KeyFileError(Exception):
    """The key file cannot be used. The message says where and why, never what the line holds."""


class Keyring:
    """The keys that open the API: those of the settings, and those of the key file as it stands now.

    The file is looked at again when a key is asked for, at most once a second: one stat of a local file, and a read
    when it changed. A file that is missing or malformed then changes nothing, so that a slip of the editor locks nobody
    out; one that holds no keys revokes them all. Whether a key is `required` is settled at start and never changes.
    """

    def __init__(
        self,
        fixed: Iterable[ApiKey] = (),
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` counts seconds. Raises SettingsError when the file cannot be used."""
        self._fixed = tuple(fixed)
        self._path = path
        self._clock = clock
        self._keys = self._fixed
        self._accepted: dict[bytes, ApiKey] = {}
        self._stamp: Stamp | None = None
        self._complaint: tuple[Stamp | None, str] | None = None
        self._next_check = clock() + CHECK_SECONDS
        self.required = bool(self._fixed) or path is not None
        if path is not None:
            try:
                self._stamp, self._keys = _read(path, self._fixed)
            except KeyFileError as problem:
                raise SettingsError(f"{label_of('api_keys_file')}: {quoted(str(path))}: {problem}") from None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The keyring that the settings ask for. Raises SettingsError when the key file cannot be used."""
        return cls(settings.keys, settings.api_keys_file)

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """All keys in force."""
        return self._keys

    def find(self, token: bytes) -> ApiKey | None:
        """The key that a caller's token is, or None."""
        if self._path is not None and (now := self._clock()) >= self._next_check:
            self._next_check = now + CHECK_SECONDS
            self._refresh(self._path)
        digest = hashlib.sha256(token).digest()
        # Only tokens that fit are remembered: that bounds the memory, and guessing fills it with nothing.
        key = self._accepted.get(digest)
        if key is None:
            for candidate in self._keys:
                if hmac.compare_digest(candidate.digest, digest):
                    key = self._accepted[digest] = candidate
        return key

    def _refresh(self, path: Path) -> None:
        stamp: Stamp | None = None
        try:
            stamp = _stamp_of(os.stat(path))
            if stamp == self._stamp:
                self._complaint = None
                return
            self._stamp, self._keys = _read(path, self._fixed)
        except (OSError, KeyFileError) as problem:
            text = (problem.strerror or "cannot be read") if isinstance(problem, OSError) else str(problem)
            if self._complaint != (stamp, text):
                self._complaint = (stamp, text)
                logger.error("API key file %s: %s; the keys read before stay in force", quoted(str(path)), text)
            return
        self._complaint = None
        self._accepted.clear()
        logger.info("API key file re-read: %d keys in force", len(self._keys))


class Authentication:
    """ASGI middleware: everything below /api needs `Authorization: Bearer <key>`, and a write key to change anything.

    Answers 401 itself when the key is missing, malformed or unknown, for paths that lead nowhere as well, and 403 when
    a read key would write. Otherwise the key's name is in `scope["tracker.key"]`. Put it inside of any CORS middleware:
    browsers send their preflight requests without a key.
    """

    def __init__(self, app: ASGIApp, keys: Keyring) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys.required and is_guarded(scope):
            token = bearer_token(scope["headers"])
            key = self.keys.find(token) if token else None
            if key is None:
                await _refusal(401, "Unauthorized", {"WWW-Authenticate": "Bearer"})(scope, receive, send)
                return
            if key.scope == "read" and scope["method"] not in READING:
                await _refusal(403, "This API key may only read")(scope, receive, send)
                return
            scope["tracker.key"] = key.name
        await self.app(scope, receive, send)


def is_guarded(scope: ASGIScope) -> bool:
    """Whether any reading of the path has `api` as its first segment.

    The router splits the raw path and then decodes each segment; others decode first and split afterwards. Both are
    looked at, however many slashes lead, in any case: a path guarded for nothing is a 401 in place of a 404, one that
    slips through is a hole.
    """
    if _first_segment(scope["path"]) == "api":
        return True
    raw: bytes | None = scope.get("raw_path")
    return raw is not None and unquote(_first_segment(raw.decode("latin-1"))).lower() == "api"


def bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The token of the one `Authorization: Bearer` header; None if there is no such header, or more than one."""
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(b" ")
    return (token.strip(b" \t") or None) if scheme.lower() == b"bearer" else None


def parse_keys(text: str, fixed: Iterable[ApiKey] = ()) -> tuple[ApiKey, ...]:
    """The keys of a key file after the `fixed` ones. Raises KeyFileError with the number of the first bad line."""
    names = {key.name: "a key in the environment" for key in fixed}
    digests = {key.digest: key for key in fixed}
    keys = list(fixed)
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        where = f"line {number}"
        if len(fields) != 3:
            raise KeyFileError(f"{where}: must be `name scope sha256:<64 hex digits>`")
        name, scope, digest = fields
        if not NAME.fullmatch(name):
            raise KeyFileError(f"{where}: the name must be 1 to 64 of the characters A-Z a-z 0-9 . _ -")
        if name in names:
            raise KeyFileError(f"{where}: the name is that of {names[name]}")
        if scope not in SCOPES:
            raise KeyFileError(f"{where}: the scope must be read or write")
        match = DIGEST.fullmatch(digest)
        if match is None:
            raise KeyFileError(f"{where}: the key must be given as sha256:<64 hex digits>")
        key = ApiKey(name, SCOPES[scope], bytes.fromhex(match[1]))
        if digests.setdefault(key.digest, key).scope != scope:
            raise KeyFileError(f"{where}: the same key has another scope already")
        names[name] = where
        keys.append(key)
    return tuple(keys)


def _read(path: Path, fixed: Iterable[ApiKey]) -> tuple[Stamp, tuple[ApiKey, ...]]:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError("is not a regular file")
            content = file.read(LARGEST_FILE_BYTES + 1)
    except OSError as problem:
        raise KeyFileError(problem.strerror or "cannot be read") from None
    if len(content) > LARGEST_FILE_BYTES:
        raise KeyFileError(f"is larger than {LARGEST_FILE_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise KeyFileError(f"line {line}: is not UTF-8") from None
    return _stamp_of(status), parse_keys(text, fixed)


def _open_at_once(path: str, flags: int) -> int:
    # Opening a named pipe waits for somebody who writes to it, and the whole server would wait along.
    return os.open(path, flags | os.O_NONBLOCK)


def _stamp_of(status: os.stat_result) -> Stamp:
    """What differs when the file was written, replaced, or made readable."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _first_segment(path: str) -> str:
    return path.lstrip("/").partition("/")[0].lower()


def _refusal(status: int, error: str, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps({"error": error}), status, headers, media_type="application/json")
