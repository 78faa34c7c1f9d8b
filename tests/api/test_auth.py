"""Authentication: who gets in, what the others are told, and how keys change while the server runs."""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from tracker.api.auth import Authentication, KeyFileError, Keyring, bearer_token, is_guarded, parse_keys
from tracker.settings import ApiKey, Settings, SettingsError, digest_of

WRITER = ApiKey("writer", "write", digest_of("w-key"))
READER = ApiKey("reader", "read", digest_of("r-key"))


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Asked:
    """What one request through the middleware came to."""

    def __init__(self) -> None:
        self.key: str | None = None
        self.reached = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""


def as_scope(path: str, method: str = "GET", *authorization: bytes) -> Scope:
    """The scope a server makes of a request target."""
    return {
        "type": "http",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "headers": [(b"host", b"localhost"), *((b"authorization", value) for value in authorization)],
    }


async def ask(keys: Keyring, scope: Scope) -> Asked:
    asked = Asked()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.reached = True
        asked.key = scope.get("tracker.key")

    async def receive() -> Message:
        raise AssertionError("nobody needs the body to know who asks")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            asked.status = message["status"]
            asked.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            asked.body += message["body"]

    await Authentication(app, keys)(scope, receive, send)
    assert asked.reached == (asked.status == 0), "either the app is asked or the middleware answers"
    return asked


@pytest.fixture
def keys() -> Keyring:
    return Keyring([WRITER, READER])


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "SPY"])
async def test_a_write_key_may_do_everything(keys: Keyring, method: str) -> None:
    asked = await ask(keys, as_scope("/api/active-sessions", method, b"Bearer w-key"))
    assert asked.key == "writer"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_read_key_may_read(keys: Keyring, method: str) -> None:
    asked = await ask(keys, as_scope("/api/active-sessions", method, b"Bearer r-key"))
    assert asked.key == "reader"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "SPY", "get"])
async def test_a_read_key_that_writes_is_told_so(keys: Keyring, method: str) -> None:
    asked = await ask(keys, as_scope("/api/active-sessions", method, b"Bearer r-key"))
    assert asked.status == 403
    assert json.loads(asked.body) == {"error": "This API key may only read"}
    assert asked.headers["content-type"] == "application/json"
    assert "www-authenticate" not in asked.headers


@pytest.mark.parametrize(
    "authorization",
    [
        (),
        (b"",),
        (b"Bearer",),
        (b"Bearer ",),
        (b"w-key",),
        (b"Basic dy1rZXk6",),
        (b"Bearerw-key",),
        (b"Bearer\tw-key",),
        (b"Bearer W-KEY",),
        (b"Bearer w-ke",),
        (b"Bearer w-keyy",),
        (b"Bearer w-key r-key",),
        (b"Bearer w-key, Bearer w-key",),
        (b"Bearer \xff\xfe\x00",),
        ("Bearer schlüssel".encode(),),
        (b"\xff",),
        (b"Bearer " + WRITER.digest,),
        (b"Bearer " + WRITER.digest.hex().encode(),),
        (b"Bearer w-key", b"Bearer w-key"),
        (b"Bearer w-key", b""),
        (b"Basic x", b"Bearer w-key"),
    ],
)
async def test_everybody_else_is_unauthorized(keys: Keyring, authorization: tuple[bytes, ...]) -> None:
    for method in ("GET", "POST"):
        asked = await ask(keys, as_scope("/api/active-sessions", method, *authorization))
        assert asked.status == 401
        assert json.loads(asked.body) == {"error": "Unauthorized"}
        assert asked.headers["www-authenticate"] == "Bearer"
        assert asked.headers["content-type"] == "application/json"
        assert asked.headers["content-length"] == str(len(asked.body))


@pytest.mark.parametrize(
    "value", [b"Bearer w-key", b"bearer w-key", b"BEARER w-key", b"Bearer   w-key", b"Bearer w-key "]
)
async def test_the_scheme_is_read_in_any_case_and_with_any_spacing(keys: Keyring, value: bytes) -> None:
    assert (await ask(keys, as_scope("/api/active-sessions", "POST", value))).key == "writer"


async def test_a_key_in_the_url_is_no_key(keys: Keyring) -> None:
    scope = as_scope("/api/active-sessions")
    scope["query_string"] = b"api_key=w-key&access_token=w-key"
    assert (await ask(keys, scope)).status == 401


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/nowhere", "/api//", "/api/active-sessions/x%2Fy"])
async def test_unknown_paths_below_api_ask_for_a_key_as_well(keys: Keyring, path: str) -> None:
    assert (await ask(keys, as_scope(path))).status == 401


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/apiary", "/api-docs", "/docs/api", "/%2561pi/x", ""])
async def test_what_is_not_below_api_is_open(keys: Keyring, path: str) -> None:
    asked = await ask(keys, as_scope(path, "POST"))
    assert asked.reached
    assert asked.key is None


@pytest.mark.parametrize(
    "path",
    [
        "//api/active-sessions",
        "///api",
        "/API/active-sessions",
        "/Api",
        "/%61pi/active-sessions",
        "/%61%70%69",
        "/%41PI/x",
        "/api%2Factive-sessions",
        "/api%2factive-sessions",
        "%2Fapi/active-sessions",
        "/%2Fapi/active-sessions",
        "/%2F%2fapi%2Fx",
        "api/active-sessions",
    ],
)
async def test_no_spelling_of_the_path_gets_around_the_key(keys: Keyring, path: str) -> None:
    assert (await ask(keys, as_scope(path))).status == 401


@pytest.mark.parametrize(
    ("path", "raw_path", "guarded"),
    [
        ("/api/x", b"/x", True),
        ("/x", b"/api/x", True),
        ("/x", b"/%61pi/x", True),
        ("/api/x", None, True),
        ("/x", None, False),
        ("/x", b"/api\xff/../api", False),
    ],
)
def test_a_server_whose_two_paths_disagree_opens_no_hole(path: str, raw_path: bytes | None, guarded: bool) -> None:
    assert is_guarded({"type": "http", "path": path, "raw_path": raw_path}) == guarded


def test_a_server_without_a_raw_path_is_fine() -> None:
    assert is_guarded({"type": "http", "path": "/api"})
    assert not is_guarded({"type": "http", "path": "/health"})


def encodings(text: str) -> st.SearchStrategy[str]:
    """All ways to percent-encode some of the characters."""
    return st.tuples(*(st.sampled_from([char, f"%{ord(char):02x}", f"%{ord(char):02X}"]) for char in text)).map("".join)


segments = st.one_of(
    encodings("api"), encodings("api/"), encodings("health"), st.sampled_from(["", ".", "..", "%", "%zz"])
)


@given(st.lists(segments, max_size=4))
def test_whatever_the_router_could_take_for_api_is_guarded(parts: list[str]) -> None:
    raw = "/" + "/".join(parts)
    router_sees = [unquote_to_bytes(segment) for segment in raw.encode().split(b"/")[1:]]
    guarded = is_guarded(as_scope(raw))
    assert guarded or router_sees[0] != b"api"
    assert not guarded or any(b"api" in segment for segment in router_sees)


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x"]), st.binary(max_size=30)), max_size=3))
def test_no_header_breaks_the_parser(headers: list[tuple[bytes, bytes]]) -> None:
    token = bearer_token(headers)
    assert token is None or any(token in value for name, value in headers if name == b"authorization")
    assert Keyring([WRITER]).find(token or b"") is None


async def test_without_any_key_the_api_is_open(keys: Keyring) -> None:
    for authorization in ((), (b"Bearer w-key",), (b"\xff", b"\xff")):
        assert (await ask(Keyring(), as_scope("/api/active-sessions", "POST", *authorization))).reached


async def test_what_is_not_http_passes() -> None:
    reached = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["type"])

    async def nothing() -> Message:
        raise AssertionError

    async def nowhere(message: Message) -> None:
        raise AssertionError

    await Authentication(app, Keyring([WRITER]))({"type": "lifespan"}, nothing, nowhere)
    assert reached == ["lifespan"]


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_on_the_wire_no_request_target_gets_around_the_key(http: str) -> None:
    """Whatever uvicorn makes of a request line: what reaches the app without a key has no `api` for a first segment."""
    reached: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["raw_path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def status_of(target: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        try:
            return (await asyncio.wait_for(reader.read(), 10))[9:12]
        finally:
            writer.close()

    guarded = Authentication(app, Keyring([WRITER]))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(guarded, http=http, lifespan="off", log_config=None, ws="none"))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        assert await status_of(b"/health") == b"200"
        for target in (b"/api", b"/api/x?y", b"//api/x", b"/%61pi/x", b"/api%2Fx", b"/API/x", b"/api?/../health"):
            assert await status_of(target) == b"401", target
        for target in (b"http://localhost/api/x", b"/x/../api/y", b"/./api", b"/\\api", b"/;/api", b"*", b"/api;x=1/y"):
            await status_of(target)
    finally:
        server.should_exit = True
        await running
    assert reached
    assert not [path for path in reached if unquote_to_bytes((path + b"/").split(b"/")[1]) == b"api"]


# The key file


def line(name: str, scope: str, key: str) -> str:
    return f"{name} {scope} sha256:{digest_of(key).hex()}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="tracker.api"):
        yield caplog


def write(path: Path, text: str | bytes) -> None:
    """Replace the file the way editors and deployments do."""
    fresh = path.with_name("fresh")
    fresh.write_bytes(text.encode() if isinstance(text, str) else text)
    fresh.rename(path)


def found(keyring: Keyring, token: str) -> str | None:
    key = keyring.find(token.encode())
    return key.name if key else None


def test_a_key_file_holds_names_scopes_and_digests() -> None:
    text = (
        f"\ufeff# the fleet\r\n\n  {line('ci', 'write', 'a')}{line('board', 'read', 'b')[:-1]}   # the dashboard\n#\n"
    )
    keys = parse_keys(text.removeprefix("\ufeff"), [WRITER])
    assert keys == (WRITER, ApiKey("ci", "write", digest_of("a")), ApiKey("board", "read", digest_of("b")))


def test_the_digest_may_be_in_capitals_and_the_last_line_open() -> None:
    assert parse_keys(f"ci write sha256:{digest_of('a').hex().upper()}")[0].digest == digest_of("a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("humble", "line 1: must be `name scope sha256:<64 hex digits>`"),
        ("# fine\n\nci write sha256:00 humble\n", "line 3: must be `name scope sha256:<64 hex digits>`"),
        ("hum,ble write sha256:00", "line 1: the name must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
        ("ci humble sha256:00", "line 1: the scope must be read or write"),
        ("ci write humble", "line 1: the key must be given as sha256:<64 hex digits>"),
        (f"ci write {'0' * 64}", "line 1: the key must be given as sha256:<64 hex digits>"),
        (f"ci write sha256:{'0' * 63}", "line 1: the key must be given as sha256:<64 hex digits>"),
        (f"ci write sha256:{'0' * 63}g", "line 1: the key must be given as sha256:<64 hex digits>"),
        (line("ci", "read", "a") + line("ci", "read", "b"), "line 2: the name is that of line 1"),
        (line("writer", "read", "a"), "line 1: the name is that of a key in the environment"),
        (line("ci", "read", "a") + line("cd", "write", "a"), "line 2: the same key has another scope already"),
        (line("ci", "read", "w-key"), "line 1: the same key has another scope already"),
        (b"# fine\n\xff\xfe", "line 2: is not UTF-8"),
    ],
)
def test_a_malformed_key_file_is_refused_at_start_by_line_but_without_its_content(
    path: Path, text: str | bytes, says: str
) -> None:
    write(path, text)
    with pytest.raises(SettingsError) as caught:
        Keyring([WRITER], path)
    assert str(caught.value) == f'TRACKER_API_KEYS_FILE (--api-keys-file): "{path}": {says}'
    assert "humble" not in str(caught.value)


def test_a_missing_key_file_is_refused_at_start(path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file or directory"):
        Keyring([WRITER], path)


def test_what_is_no_regular_file_is_refused_at_once_and_does_not_hang(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(SettingsError, match="is not a regular file"):
        Keyring([], path)
    with pytest.raises(SettingsError, match="Is a directory"):
        Keyring([], path.parent)


def test_a_huge_key_file_is_refused(path: Path) -> None:
    write(path, b"#" * (1024 * 1024 + 1))
    with pytest.raises(SettingsError, match="is larger than 1048576 bytes"):
        Keyring([], path)


def test_the_settings_name_keys_and_file(path: Path) -> None:
    write(path, line("ci", "read", "a"))
    keyring = Keyring.of(Settings.load({"API_KEY": "b", "TRACKER_API_KEYS_FILE": str(path)}))
    assert (found(keyring, "a"), found(keyring, "b"), found(keyring, "c")) == ("ci", "key-1", None)
    assert keyring.required
    assert not Keyring.of(Settings()).required


@pytest.mark.parametrize("text", ["", "# none yet\n"])
async def test_an_empty_key_file_lets_nobody_in(path: Path, text: str) -> None:
    write(path, text)
    assert (await ask(Keyring([], path), as_scope("/api/active-sessions"))).status == 401


async def test_keys_rotate_through_the_file_without_a_restart(
    path: Path, clock: Clock, logged: pytest.LogCaptureFixture
) -> None:
    write(path, line("old", "write", "a"))
    keyring = Keyring([], path, clock)
    assert found(keyring, "a") == "old"
    write(path, line("old", "write", "a") + line("new", "write", "b"))
    clock.now += 1
    assert (found(keyring, "a"), found(keyring, "b")) == ("old", "new")
    write(path, line("new", "write", "b"))
    clock.now += 1
    assert (found(keyring, "a"), found(keyring, "b")) == (None, "new")
    assert (await ask(keyring, as_scope("/api/x", "GET", b"Bearer a"))).status == 401
    write(path, "")
    clock.now += 1
    assert (found(keyring, "a"), found(keyring, "b")) == (None, None)
    assert (await ask(keyring, as_scope("/api/x", "GET", b"Bearer b"))).status == 401
    assert [record.getMessage() for record in logged.records] == [
        "API key file re-read: 2 keys in force",
        "API key file re-read: 1 keys in force",
        "API key file re-read: 0 keys in force",
    ]


def test_a_key_whose_scope_changes_has_the_new_one_at_once(path: Path, clock: Clock) -> None:
    write(path, line("ci", "write", "a"))
    keyring = Keyring([], path, clock)
    found(keyring, "a")
    write(path, line("ci", "read", "a"))
    clock.now += 1
    key = keyring.find(b"a")
    assert key is not None
    assert key.scope == "read"


def test_a_file_written_in_place_counts_as_changed(path: Path, clock: Clock) -> None:
    path.write_text(line("ci", "write", "a"))
    keyring = Keyring([], path, clock)
    with path.open("a") as file:
        file.write(line("cd", "write", "b"))
    clock.now += 1
    assert found(keyring, "b") == "cd"


def test_a_swapped_symlink_counts_as_changed(path: Path, clock: Clock) -> None:
    """As Kubernetes mounts a Secret: the name stays, and a link on the way to it is replaced."""
    for name, key in (("one", "a"), ("two", "b")):
        (path.parent / name).mkdir()
        write(path.parent / name / "keys", line("ci", "write", key))
    data = path.parent / "data"
    data.symlink_to("one")
    path.symlink_to("data/keys")
    keyring = Keyring([], path, clock)
    (path.parent / "fresh").symlink_to("two")
    (path.parent / "fresh").rename(data)
    clock.now += 1
    assert (found(keyring, "a"), found(keyring, "b")) == (None, "ci")


def test_the_file_is_looked_at_once_a_second_at_most(path: Path, clock: Clock) -> None:
    write(path, line("ci", "write", "a"))
    keyring = Keyring([], path, clock)
    write(path, line("ci", "write", "b"))
    clock.now += 0.99
    assert found(keyring, "b") is None
    clock.now += 0.02
    assert found(keyring, "b") == "ci"
    write(path, line("ci", "write", "c"))
    clock.now += 0.99
    assert found(keyring, "c") is None
    clock.now += 0.02
    assert found(keyring, "c") == "ci"


def test_an_unchanged_file_is_not_read_again(path: Path, clock: Clock, logged: pytest.LogCaptureFixture) -> None:
    write(path, line("ci", "write", "a"))
    keyring = Keyring([], path, clock)
    for _ in range(3):
        clock.now += 1
        assert found(keyring, "a") == "ci"
    assert not logged.records


def break_by_a_bad_line(path: Path) -> str:
    write(path, "# new\nci write humble\n")
    return "line 2: the key must be given as sha256:<64 hex digits>"


def break_by_removal(path: Path) -> str:
    path.unlink()
    return "No such file or directory"


def break_by_a_directory(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "Is a directory"


def break_by_a_pipe(path: Path) -> str:
    path.unlink()
    os.mkfifo(path)
    return "is not a regular file"


@pytest.mark.parametrize("spoil", [break_by_a_bad_line, break_by_removal, break_by_a_directory, break_by_a_pipe])
def test_a_file_that_breaks_keeps_the_old_keys_and_says_so_once(
    path: Path, clock: Clock, logged: pytest.LogCaptureFixture, spoil: object
) -> None:
    write(path, line("ci", "write", "a"))
    keyring = Keyring([READER], path, clock)
    assert callable(spoil)
    says = spoil(path)
    for _ in range(3):
        clock.now += 1
        assert (found(keyring, "a"), found(keyring, "r-key")) == ("ci", "reader")
    (record,) = logged.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == f'API key file "{path}": {says}; the keys read before stay in force'
    assert "humble" not in logged.text

    if path.is_dir():
        path.rmdir()
    write(path, line("ci", "write", "b"))
    clock.now += 1
    assert (found(keyring, "a"), found(keyring, "b")) == (None, "ci")
    assert logged.records[-1].getMessage() == "API key file re-read: 2 keys in force"


def test_each_new_mistake_is_told_even_if_it_is_the_same_again(
    path: Path, clock: Clock, logged: pytest.LogCaptureFixture
) -> None:
    write(path, line("ci", "write", "a"))
    keyring = Keyring([], path, clock)
    for attempt in (1, 2):
        write(path, "#" * attempt + "\noops")
        clock.now += 1
        assert found(keyring, "a") == "ci"
        assert len(logged.records) == attempt


def test_a_file_that_vanishes_and_comes_back_unchanged_is_no_news_and_may_vanish_again(
    path: Path, clock: Clock, logged: pytest.LogCaptureFixture
) -> None:
    write(path, line("ci", "write", "a"))
    keyring = Keyring([], path, clock)
    for _ in range(2):
        path.rename(path.with_name("away"))
        clock.now += 1
        found(keyring, "a")
        path.with_name("away").rename(path)
        clock.now += 1
        found(keyring, "a")
    assert [record.levelname for record in logged.records if record.levelno == logging.ERROR] == ["ERROR"] * 2
    assert found(keyring, "a") == "ci"


def test_strangers_leave_nothing_behind_in_memory() -> None:
    keyring = Keyring([WRITER])
    for number in range(1000):
        keyring.find(b"guess %d" % number)
        keyring.find(b"w-key")
    assert len(keyring._accepted) == 1


def test_a_key_is_compared_with_all_others_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on the way of every request, and there may be a thousand keys."""
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    keyring = Keyring(ApiKey(f"key-{number}", "write", digest_of(f"key {number}")) for number in range(1000))
    for _ in range(100):
        assert keyring.find(b"key 500")
    assert len(compared) == 1000
    assert all(isinstance(side, bytes) for pair in compared for side in pair)


def test_neither_keyring_nor_errors_show_digests(path: Path) -> None:
    write(path, line("ci", "write", "a"))
    shown = repr(Keyring([WRITER], path).keys)
    assert digest_of("a").hex() not in shown
    assert repr(digest_of("a")) not in shown
    with pytest.raises(KeyFileError) as caught:
        parse_keys(line("ci", "write", "a") * 2)
    assert digest_of("a").hex() not in str(caught.value)
