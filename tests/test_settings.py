"""Settings: what is accepted, what is refused with which line, and that secrets stay inside."""

import os
import traceback

import pytest
from pydantic import ValidationError

from tracker.settings import (
    FIELDS,
    ApiKey,
    Settings,
    SettingsError,
    digest_of,
    is_loopback,
    option_of,
    quoted,
    suggestion,
    variable_of,
)

WEBHOOK_URL_RULE = "must be a URL such as https://example.org/hooks/tracker, without spaces or fragment"
WEBHOOK_SECRET_RULE = "must be whsec_ and 24 to 64 bytes in base64, as `openssl rand -base64 32` makes them"
WEBHOOK_TYPES_RULE = "must be some of session.created, session.updated, session.ended, comma-separated"


def problems(environ: dict[str, str] | None = None, **options: object) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ or {}, **options)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all("\n" not in line for line in caught.value.problems)
    return caught.value.problems


def test_every_setting_has_a_default_that_needs_nothing_else() -> None:
    settings = Settings.load({})
    assert settings == Settings()
    assert (settings.host, settings.port, settings.store_url) == ("127.0.0.1", 3013, "memory://")
    assert not settings.authenticated
    assert settings.in_memory


def test_the_constructor_never_looks_at_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"TRACKER_PORT": "1"})
    assert Settings().port == 3013
    assert Settings.load().port == 1


def test_a_dotenv_file_is_not_read(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open(".env", "w") as file:
        file.write("TRACKER_PORT=1\n")
    assert Settings.load({}).port == 3013


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_an_option_nobody_knows_is_the_programmers_error() -> None:
    with pytest.raises(TypeError, match="prot"):
        Settings.load({}, prot=1)


def test_options_win_over_variables_and_variables_over_defaults() -> None:
    environ = {"TRACKER_PORT": "1000", "TRACKER_SHARDS": "8", "TRACKER_NAMESPACE": ""}
    settings = Settings.load(environ, port="2000", shards=None)
    assert (settings.port, settings.shards, settings.namespace) == (2000, 8, "tracker")


@pytest.mark.parametrize("name", FIELDS)
def test_an_empty_variable_counts_as_not_set(name: str) -> None:
    assert Settings.load({variable_of(name): ""}) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("host", "::1", "::1"),
        ("host", " localhost ", "localhost"),
        ("port", "0", 0),
        ("port", "65535", 65535),
        ("workers", "1", 1),
        ("namespace", "a.B_c-9", "a.B_c-9"),
        ("namespace", "n" * 64, "n" * 64),
        ("shards", "4096", 4096),
        ("ttl_seconds", "0.5e1", 5.0),
        ("ttl_seconds", "86400", 86400.0),
        ("grace_seconds", "604800", 604800.0),
        ("sweep_interval_seconds", "0.1", 0.1),
        ("store_timeout_seconds", "0.05", 0.05),
        ("feed_length", "100", 100),
        ("max_streams", "1", 1),
        ("max_body_bytes", "16777216", 16777216),
        ("keep_alive_seconds", "1", 1),
        ("drain_seconds", "0.5", 0.5),
        ("agent_cleanup", "expired", "expired"),
        ("log_level", "WARNING", "warning"),
        ("log_format", "Json", "json"),
        ("access_log", "Errors", "errors"),
        ("cors_origins", "*", ("*",)),
        (
            "cors_origins",
            " https://App.example.com:443 ,,http://localhost:5173,http://[::1]:80",
            ("https://app.example.com", "http://localhost:5173", "http://[::1]"),
        ),
        ("store_url", "redis://localhost", "redis://localhost"),
        ("store_url", "rediss://u:p%40ss@host:6380/15?ssl_cert_reqs=none", None),
        ("store_url", "unix:///run/redis.sock?db=3", None),
        ("store_url", "redis://[::1]:6379/?db=1", None),
        ("webhook_secret", "whsec_" + "A" * 32, bytes(24)),
        ("webhook_secret", "A" * 32, bytes(24)),
        ("webhook_types", "session.created, session.ended,session.created", ("session.created", "session.ended")),
        ("store_url", "redis+sentinel://a,b:1,[::1]/my-master.1", None),
        ("store_url", "rediss+sentinel://u:p%40ss@a:26379/m/15?sentinel_password=%26&ssl_cert_reqs=none", None),
    ],
)
def test_a_good_value_is_taken(name: str, value: str, expected: object) -> None:
    taken = getattr(Settings.load({variable_of(name): value}), name)
    assert taken == (value if expected is None else expected)
    assert getattr(Settings.load({}, **{name: value}), name) == taken


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("host", "a b", 'must be an address or a host name, without brackets or port, not "a b"'),
        ("host", "[::1]", 'must be an address or a host name, without brackets or port, not "[::1]"'),
        ("port", "abc", 'must be a whole number from 0 to 65535, not "abc"'),
        ("port", "65536", 'must be a whole number from 0 to 65535, not "65536"'),
        ("port", "3013.5", 'must be a whole number from 0 to 65535, not "3013.5"'),
        ("port", "9" * 5000, f'must be a whole number from 0 to 65535, not "{"9" * 77}..."'),
        ("workers", "0", 'must be a whole number from 1 to 1024, not "0"'),
        ("namespace", "{a}", 'must be 1 to 64 of the characters A-Z a-z 0-9 . _ -, not "{a}"'),
        ("namespace", "n" * 65, f'must be 1 to 64 of the characters A-Z a-z 0-9 . _ -, not "{"n" * 65}"'),
        ("namespace", "a\nb", r'must be 1 to 64 of the characters A-Z a-z 0-9 . _ -, not "a\nb"'),
        ("shards", "4097", 'must be a whole number from 1 to 4096, not "4097"'),
        ("ttl_seconds", "0.9", 'must be a number from 1 to 86400, not "0.9"'),
        ("ttl_seconds", "nan", 'must be a number from 1 to 86400, not "nan"'),
        ("grace_seconds", "inf", 'must be a number from 1 to 604800, not "inf"'),
        ("sweep_interval_seconds", "0", 'must be a number from 0.1 to 60, not "0"'),
        ("store_timeout_seconds", "1s", 'must be a number from 0.05 to 60, not "1s"'),
        ("feed_length", "99", 'must be a whole number from 100 to 10000000, not "99"'),
        ("max_streams", "0", 'must be a whole number from 1 to 100000, not "0"'),
        ("max_body_bytes", "1023", 'must be a whole number from 1024 to 16777216, not "1023"'),
        ("keep_alive_seconds", "0", 'must be a whole number from 1 to 3600, not "0"'),
        ("drain_seconds", "-1", 'must be a number from 0 to 300, not "-1"'),
        ("agent_cleanup", "some", 'must be all or expired, not "some"'),
        ("log_level", "loud", 'must be debug, info, warning, error or critical, not "loud"'),
        ("log_format", "xml", 'must be text or json, not "xml"'),
        ("access_log", "on", 'must be all, errors or off, not "on"'),
        ("cors_origins", "*,https://a/", "entry 2 must be * or scheme://host[:port], without path or slash at the end"),
        ("cors_origins", "https://*.a", "entry 1 must be * or scheme://host[:port], without path or slash at the end"),
        ("store_url", "localhost:6379", "must be a URL such as redis://localhost:6379/0 or memory://"),
        (
            "store_url",
            "http://localhost",
            "must begin with memory://, redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
        ),
        ("store_url", "memory://x", "must be just memory://, with nothing after it"),
        ("store_url", "redis://host/0/1", "must name its database by a number, as in redis://localhost:6379/0"),
        ("store_url", "redis://host?db=a", "must name its database by a number, as in redis://localhost:6379/0"),
        (
            "store_url",
            "redis+sentinel://host",
            "must name the master that the sentinels watch, as in redis+sentinel://host1:26379,host2,host3/mymaster/0",
        ),
        (
            "store_url",
            "redis+cluster://host/1",
            "must name no database: a Redis Cluster has only one",
        ),
        ("api_keys", " , ", "is set, but holds no key"),
        ("api_keys", "good,ba d", "key 2 of 2 must be visible ASCII characters, without spaces"),
        ("read_api_keys", "schlüssel", "key 1 of 1 must be visible ASCII characters, without spaces"),
        ("api_keys_file", "  ", "must be the path of a file"),
        ("webhook_url", "ftp://a/b", WEBHOOK_URL_RULE),
        ("webhook_url", "https://user:secret@a/b", WEBHOOK_URL_RULE),
        ("webhook_url", "https://", WEBHOOK_URL_RULE),
        ("webhook_url", "http://[::1/", WEBHOOK_URL_RULE),
        ("webhook_url", "http://[zz]/x", WEBHOOK_URL_RULE),
        ("webhook_url", "http://a/\x01", WEBHOOK_URL_RULE),
        ("webhook_url", "http://a:99999/x", WEBHOOK_URL_RULE),
        ("webhook_url", "http://a:0/x", WEBHOOK_URL_RULE),
        ("webhook_url", "http://:80/", WEBHOOK_URL_RULE),
        ("webhook_url", "http://a..b/", WEBHOOK_URL_RULE),
        ("webhook_url", f"http://{'a' * 64}/", WEBHOOK_URL_RULE),
        ("webhook_secret", "whsec_" + "A" * 28, WEBHOOK_SECRET_RULE),
        ("webhook_secret", "no base64, but long enough for one", WEBHOOK_SECRET_RULE),
        ("webhook_types", "session.ended,session.died", WEBHOOK_TYPES_RULE),
        ("webhook_types", " , ", WEBHOOK_TYPES_RULE),
    ],
)
def test_a_bad_value_is_one_line_that_names_variable_and_option(name: str, value: str, says: str) -> None:
    option = f" ({option_of(name)})" if option_of(name) else ""
    line = f"{variable_of(name)}{option}: {says}"
    assert problems({variable_of(name): value}) == (line,)
    assert problems({}, **{name: value}) == (line,)


def test_the_examples_of_bad_values_leave_no_setting_out() -> None:
    cases = next(mark for mark in test_a_bad_value_is_one_line_that_names_variable_and_option.pytestmark)  # type: ignore[attr-defined]
    assert {name for name, _, _ in cases.args[1]} == set(FIELDS)


def test_webhooks_are_not_sent_unsigned() -> None:
    url = {"TRACKER_WEBHOOK_URL": "http://localhost:9/hook?token=t"}
    (line,) = problems(url)
    assert line.startswith("TRACKER_WEBHOOK_SECRET: needed with TRACKER_WEBHOOK_URL")
    settings = Settings.load({**url, "TRACKER_WEBHOOK_SECRET": "A" * 32})
    assert settings.webhook_url == url["TRACKER_WEBHOOK_URL"]
    assert "token" not in repr(settings)
    assert not {"TRACKER_WEBHOOK_URL", "TRACKER_WEBHOOK_SECRET"} & settings.to_environment().keys()


def test_every_problem_gets_its_line() -> None:
    lines = problems({"TRACKER_PORT": "x"}, workers="y", log_level="z")
    assert [line.split(" ")[0] for line in lines] == ["TRACKER_PORT", "TRACKER_WORKERS", "TRACKER_LOG_LEVEL"]


def test_an_empty_option_is_a_wrong_value_not_one_left_out() -> None:
    assert problems(host="")[0].startswith("TRACKER_HOST (--host): must be an address")


@pytest.mark.parametrize("parameter", ["protocol=3", "socket_timeout=9", "retry_on_timeout=1", "max_connections=1"])
def test_the_store_url_may_not_change_how_the_driver_behaves(parameter: str) -> None:
    (line,) = problems(store_url=f"redis://host?{parameter}")
    assert line.startswith("TRACKER_STORE_URL (--store-url): may have no parameters but client_name, db, ")


@pytest.mark.parametrize("parameter", ["db=1", "username=u", "password=p", "protocol=3", "socket_timeout=9"])
def test_behind_sentinel_what_has_its_place_in_the_url_is_no_parameter(parameter: str) -> None:
    (line,) = problems(store_url=f"redis+sentinel://host/m?{parameter}")
    assert line.startswith(
        "TRACKER_STORE_URL (--store-url): may have no parameters but client_name, sentinel_password, "
    )
    assert "password, username" not in line


def test_redis_url_is_read_only_where_tracker_store_url_is_not_set() -> None:
    assert Settings.load({"REDIS_URL": "redis://a"}).store_url == "redis://a"
    assert Settings.load({"REDIS_URL": "redis://a", "TRACKER_STORE_URL": "redis://b"}).store_url == "redis://b"
    assert Settings.load({"REDIS_URL": "nonsense"}, store_url="redis://c").store_url == "redis://c"
    assert problems({"REDIS_URL": "nonsense"})[0].startswith("REDIS_URL: must be a URL")


def test_memory_with_more_than_one_worker_is_refused() -> None:
    (line,) = problems(workers=2)
    assert line.startswith("TRACKER_WORKERS (--workers): memory:// works with one worker only, not 2;")
    assert Settings.load({}, workers=2, store_url="redis://host").workers == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "tracker.example.com", "::ffff:127.0.0.1", "127.1"])
def test_an_address_that_others_reach_is_refused_without_keys(host: str) -> None:
    (line,) = problems(host=host)
    assert line.startswith(f'TRACKER_HOST (--host): "{host}" is not a loopback address, which needs API keys')
    for key in ({"API_KEY": "k"}, {"TRACKER_READ_API_KEYS": "k"}, {"TRACKER_API_KEYS_FILE": "keys"}):
        assert Settings.load(key, host=host).authenticated


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert is_loopback(host)
    assert Settings.load({}, host=host).host == host


def test_all_refused_combinations_are_told_at_once() -> None:
    assert len(problems({"TRACKER_HOST": "0.0.0.0", "TRACKER_WORKERS": "2"})) == 2


def test_keys_become_digests_with_a_scope_and_a_name() -> None:
    settings = Settings.load({"TRACKER_API_KEYS": " one ,, two,", "API_KEY": "three", "TRACKER_READ_API_KEYS": "four"})
    assert settings.keys == (
        ApiKey("key-1", "write", digest_of("one")),
        ApiKey("key-2", "write", digest_of("two")),
        ApiKey("key-3", "write", digest_of("three")),
        ApiKey("read-key-1", "read", digest_of("four")),
    )


def test_api_key_is_one_key_whatever_it_holds() -> None:
    assert Settings.load({"API_KEY": "a,b"}).keys == (ApiKey("key-1", "write", digest_of("a,b")),)
    assert problems({"API_KEY": "a b"}) == ("API_KEY: key 1 of 1 must be visible ASCII characters, without spaces",)


def test_the_same_key_twice_is_one_key() -> None:
    assert len(Settings.load({"TRACKER_API_KEYS": "a,b,a", "API_KEY": "b"}).keys) == 2


def test_a_key_of_both_scopes_is_refused() -> None:
    (line,) = problems({"TRACKER_API_KEYS": "a,secret", "TRACKER_READ_API_KEYS": "secret"})
    assert line == "TRACKER_READ_API_KEYS: holds a key that may also write; a key has one scope"


def test_no_representation_shows_a_key_or_its_digest() -> None:
    settings = Settings.load({"TRACKER_API_KEYS": "hush-hush", "TRACKER_READ_API_KEYS": "quiet"})
    shown = repr(settings) + str(settings) + repr(settings.keys)
    for secret in ("hush-hush", "quiet"):
        assert secret not in shown
        assert repr(digest_of(secret)) not in shown
        assert digest_of(secret).hex() not in shown
    assert "key-1" in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:secret@host/1", "redis://***@host/1"),
        ("rediss://me:secret@host:6380", "rediss://***@host:6380"),
        ("redis://me:@secret@host", "redis://***@host"),
        ("redis+sentinel://me:secret@a:1,b/m/2?sentinel_password=secret", "redis+sentinel://***@a:1,b/m/2"),
        ("redis://host/1?password=secret", "redis://host/1"),
        ("redis://host/1?password=a@secret", "redis://host/1"),
        ("unix://me:secret@/run/redis.sock?db=1", "unix://***@/run/redis.sock"),
    ],
)
def test_the_store_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    settings = Settings(store_url=url)
    assert settings.store_url == url
    assert settings.store_url_redacted == shown
    assert "ecret" not in repr(settings)
    assert shown in repr(settings)


@pytest.mark.parametrize(
    "environ",
    [
        {"TRACKER_STORE_URL": "redis://:hu/mble@host"},
        {"TRACKER_STORE_URL": "redis://me:hu?mble@host"},
        {"TRACKER_STORE_URL": "redis://me:hu#mble@host"},
        {"TRACKER_STORE_URL": "redis://me:mble@host:port"},
        {"TRACKER_STORE_URL": "redis://me:mble@host/zero"},
        {"TRACKER_STORE_URL": "redis://[mble"},
        {"TRACKER_STORE_URL": "redis://host?mble"},
        {"TRACKER_STORE_URL": "mble"},
        {"TRACKER_STORE_URL": "mble://host"},
        {"TRACKER_STORE_URL": "redis+sentinel://:hu/mble@host/m"},
        {"TRACKER_STORE_URL": "redis+sentinel://:hu,mble@host"},
        {"TRACKER_STORE_URL": "redis+sentinel://host/m?mble"},
        {"TRACKER_STORE_URL": "redis+sentinel://host/m?mble=mble"},
        {"TRACKER_STORE_URL": "redis+sentinel://host/m?sentinel_password=@mble"},
        {"REDIS_URL": "redis://:12/34mble@host"},
        {"TRACKER_API_KEYS": "hu mble"},
        {"API_KEY": "hu mble"},
        {"TRACKER_READ_API_KEYS": "humble\x7f"},
        {"TRACKER_CORS_ORIGINS": "https://me:mble@host"},
    ],
)
def test_no_error_shows_what_is_secret_not_even_in_its_traceback(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    assert "mble" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None
    ((variable, value),) = environ.items()
    if variable == "TRACKER_STORE_URL":
        with pytest.raises(ValidationError) as direct:
            Settings(store_url=value)
        assert "mble" not in str(direct.value)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"TRACKER_STORE_URL": "redis://me:pass%2Fword@host:1/2?ssl_password=x", "TRACKER_WORKERS": "4"},
        {"TRACKER_CORS_ORIGINS": "*,https://a", "TRACKER_TTL_SECONDS": "0.1e2", "TRACKER_STORE_TIMEOUT_SECONDS": "0.3"},
        {"API_KEY": "k", "TRACKER_HOST": "0.0.0.0", "TRACKER_PORT": "0", "TRACKER_LOG_LEVEL": "DEBUG"},
        {"TRACKER_API_KEYS_FILE": "/etc/tracker/keys", "TRACKER_READ_API_KEYS": "r"},
    ],
)
def test_workers_come_to_the_same_settings(environ: dict[str, str]) -> None:
    settings = Settings.load(environ, namespace="fleet", agent_cleanup="expired")
    exported = settings.to_environment()
    assert not {"TRACKER_API_KEYS", "TRACKER_READ_API_KEYS"} & exported.keys()
    assert Settings.load({**environ, **exported}) == settings


def test_unknown_variables_are_found_and_kubernetes_links_are_not_among_them() -> None:
    environ = {
        "TRACKER_PROT": "1",
        "TRACKER_API_KEY": "secret",
        "TRACKER_PORT": "1",
        "TRACKER_URL": "http://localhost:3013",
        "PATH": "/bin",
        "TRACKER_SERVICE_HOST": "10.0.0.1",
        "TRACKER_SERVICE_PORT_HTTP": "3013",
        "TRACKER_PORT_3013_TCP_ADDR": "10.0.0.1",
    }
    assert Settings.unknown_variables(environ) == ["TRACKER_API_KEY", "TRACKER_PROT"]
    assert suggestion("TRACKER_PROT") == "TRACKER_PORT"
    assert suggestion("TRACKER_API_KEY") == "TRACKER_API_KEYS"
    assert suggestion("TRACKER_COFFEE_MACHINE") is None


def test_the_port_that_kubernetes_sets_is_explained() -> None:
    (line,) = problems({"TRACKER_PORT": "tcp://10.0.0.1:3013"})
    assert line.endswith("(Kubernetes sets it for a Service named tracker; give the pod a TRACKER_PORT of its own)")


def test_the_table_has_every_setting_with_default_unit_and_help() -> None:
    table = {row.variable: row for row in Settings.table()}
    assert len(table) == len(FIELDS)
    assert table["TRACKER_TTL_SECONDS"][1:4] == ("--ttl-seconds", "1800", "seconds")
    assert table["TRACKER_STORE_URL"].default == "memory://"
    assert table["TRACKER_API_KEYS"].option == ""
    for row in table.values():
        assert row.help.endswith((".", "set.")), row.variable
        assert row.unit == ("seconds" if "SECONDS" in row.variable else row.unit)
        assert row.default or row.variable.endswith(("KEYS", "KEYS_FILE", "ORIGINS", "WEBHOOK_URL", "WEBHOOK_SECRET"))


def test_the_table_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Settings.table()
    monkeypatch.setitem(os.environ, "TRACKER_PORT", "1")
    assert Settings.table() == before


def test_quoted_text_is_one_printable_line() -> None:
    assert quoted("a\n\x1b[31m\u2028") == r'"a\n\u001b[31m\u2028"'
