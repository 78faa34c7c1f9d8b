"""Every setting with its default, unit and help. No I/O: the key file is read by `tracker.api.auth`.

`Settings(...)` takes values as they are and never looks at the environment, so tests say all they mean.
`Settings.load()` is what a process starts with: options over TRACKER_* variables over defaults, each problem one line.
"""

import base64
import difflib
import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tracker.cluster_url import CLUSTER_SCHEMES, ClusterUrl
from tracker.models import EVENT_TYPES, EventType
from tracker.sentinel_url import SENTINEL_SCHEMES, SentinelUrl

PREFIX = "TRACKER_"
MEMORY_URL = "memory://"

# Only what says where the store is and how to trust it. Everything else redis-py would take from the URL (timeouts,
# retries, protocol, pool size) silently wins over what our connection module sets, which is tuned against data loss.
STORE_URL_PARAMETERS = frozenset(
    {
        "db",
        "username",
        "password",
        "client_name",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_certfile",
        "ssl_cert_reqs",
        "ssl_check_hostname",
        "ssl_keyfile",
        "ssl_password",
    }
)
# Behind Sentinel the URL has its place for database, user and password; the sentinels' own login has none.
SENTINEL_PARAMETERS = STORE_URL_PARAMETERS - {"db", "username", "password"} | {"sentinel_username", "sentinel_password"}

# In a cluster nodes have one database, and one login, which has its place in the URL as well.
CLUSTER_PARAMETERS = STORE_URL_PARAMETERS - {"db", "username", "password"}

# Kubernetes sets these in every pod beside a Service that is named "tracker": nobody's typo.
KUBERNETES_LINK = re.compile(r"TRACKER_SERVICE_(HOST|PORT)(_\w+)?|TRACKER_PORT_\d+_\w+")

# What our client commands read. TRACKER_API_KEY is not here: set for a server, it likely was meant as TRACKER_API_KEYS.
CLIENT_VARIABLES = frozenset({"TRACKER_URL", "TRACKER_AGENT_ID", "TRACKER_TASK_ID"})

VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
HOST = re.compile(r"[A-Za-z0-9.:%_-]+")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
WEBHOOK_URL = re.compile(r"https?://[^\s/?#@]+(:[0-9]{1,5})?([/?][^\s#]*)?")
DEFAULT_PORTS = {"http://": ":80", "https://": ":443"}

Scope = Literal["read", "write"]


class SettingsError(Exception):
    """Settings nobody can start with. `problems` has one line for each; none holds a secret."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the server knows it. `digest` is the SHA-256 of the key (32 bytes); the key itself is never kept."""

    name: str
    scope: Scope
    digest: bytes = field(repr=False)

    @property
    def line(self) -> str:
        """The line of the key file that stands for this key."""
        return f"{self.name} {self.scope} sha256:{self.digest.hex()}"


def digest_of(key: str | bytes) -> bytes:
    """The SHA-256 of a key (32 bytes). A fast hash will do: keys are long and random, not passwords."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


class Setting(NamedTuple):
    """A row of the settings table. `option` and `unit` are "" where there is none; `default` is what one would type."""

    variable: str
    option: str
    default: str
    unit: str
    help: str


def _unit(unit: str) -> dict[str, Any]:
    return {"unit": unit}


class Settings(BaseModel, frozen=True):
    """All settings of one server, checked: pydantic's ValidationError, without the values given, if one is wrong."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, str_strip_whitespace=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on. One that is not loopback needs API keys.")
    port: int = Field(default=3013, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    workers: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Server processes that share the port. More than one needs a Redis.",
    )
    store_url: str = Field(
        default=MEMORY_URL,
        repr=False,
        description="Where sessions are kept: memory:// (inside the process, gone when it stops), redis://host:6379/0, "
        "rediss:// (TLS), unix:///path/to/socket, redis+sentinel://host1,host2,host3/master-name/0 or "
        "redis+cluster://host1,host2,host3. REDIS_URL is read where this one is not set.",
    )
    namespace: str = Field(
        default="tracker", description="Prefix of every key in the store, so that trackers can share one."
    )
    shards: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Parts the key space is split into. Once the store holds data, `tracker reshard` makes them more. "
        "64 is good for a Redis Cluster.",
    )
    ttl_seconds: float = Field(
        default=1800,
        ge=1,
        le=86400,
        allow_inf_nan=False,
        description="How long a session lives after its last heartbeat, unless it asks for another time itself.",
        json_schema_extra=_unit("seconds"),
    )
    grace_seconds: float = Field(
        default=3600,
        ge=1,
        le=604800,
        allow_inf_nan=False,
        description="How much longer Redis keeps an expired session when no server is there to sweep it.",
        json_schema_extra=_unit("seconds"),
    )
    sweep_interval_seconds: float = Field(
        default=5,
        ge=0.1,
        le=60,
        allow_inf_nan=False,
        description="Time between two sweeps that end expired sessions.",
        json_schema_extra=_unit("seconds"),
    )
    store_timeout_seconds: float = Field(
        default=1,
        ge=0.05,
        le=60,
        allow_inf_nan=False,
        description="Longest a request waits for the store before it is answered 503.",
        json_schema_extra=_unit("seconds"),
    )
    feed_length: int = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="Newest events that the change feed keeps, per shard.",
        json_schema_extra=_unit("events"),
    )
    max_streams: int = Field(
        default=2000,
        ge=1,
        le=100_000,
        description="Readers of the change feed at once, streams and waiting pages, per worker; one more is answered "
        "503.",
    )
    webhook_url: str = Field(
        default="",
        repr=False,
        description="Where events are sent to as they happen, signed: http:// or https://. Empty: nowhere.",
    )
    webhook_secret: bytes = Field(
        default=b"",
        repr=False,
        description="What webhooks are signed with: whsec_ and 24 to 64 bytes in base64, shared with the receiver "
        "(openssl rand -base64 32).",
    )
    webhook_types: tuple[EventType, ...] = Field(
        default=("session.ended",),
        description="Which events are sent, comma-separated: session.created, session.updated, session.ended.",
    )
    max_body_bytes: int = Field(
        default=65536,
        ge=1024,
        le=16 * 1024 * 1024,
        description="Largest request body; a larger one is answered 413.",
        json_schema_extra=_unit("bytes"),
    )
    agent_cleanup: Literal["all", "expired"] = Field(
        default="all",
        description="What a cleanup with nothing but an agentId ends: all of that agent's sessions, or only the "
        "expired ones, for several processes that share one agent id.",
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="Web origins whose pages may call the API, comma-separated: scheme://host[:port], or * for any.",
    )
    keep_alive_seconds: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="How long an idle connection stays open. Longer than the proxy's in front, or requests get lost.",
        json_schema_extra=_unit("seconds"),
    )
    drain_seconds: float = Field(
        default=0,
        ge=0,
        le=300,
        allow_inf_nan=False,
        description="How long a server that gets SIGTERM serves on before it stops: /ready says no meanwhile, and each "
        "answer closes its connection. Longer than the proxy in front takes to notice.",
        json_schema_extra=_unit("seconds"),
    )
    log_level: Literal["debug", "info", "warning", "error", "critical"] = Field(
        default="info", description="Least severe messages to log: debug, info, warning, error or critical."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log lines: text for people, or json, one object per line."
    )
    access_log: Literal["all", "errors", "off"] = Field(
        default="all",
        description="Requests to log, one line each at level info: all, errors (answered with 400 or above) or off. "
        "Probes and scrapes that go well are at level debug.",
    )
    api_keys: tuple[ApiKey, ...] = Field(
        default=(),
        description="Keys that may read and write, comma-separated. API_KEY is honoured as one more.",
    )
    read_api_keys: tuple[ApiKey, ...] = Field(default=(), description="Keys that may only read, comma-separated.")
    api_keys_file: Path | None = Field(
        default=None,
        description="File with one `name scope sha256:<hex>` per line, as `tracker hash-key` makes them; re-read when "
        "it changes, so that keys rotate without a restart.",
    )

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """The keys of both scopes that came with the settings; those of `api_keys_file` are the Keyring's."""
        return self.api_keys + self.read_api_keys

    @property
    def authenticated(self) -> bool:
        """Whether callers need a key. Settled at start: a key file without keys lets nobody in, not everybody."""
        return bool(self.keys) or self.api_keys_file is not None

    @property
    def in_memory(self) -> bool:
        return self.store_url == MEMORY_URL

    @property
    def on_cluster(self) -> bool:
        return self.store_url.partition("://")[0] in CLUSTER_SCHEMES

    @property
    def store_url_redacted(self) -> str:
        """The store's URL for people: no user, password or parameters, percent-encoded or not."""
        scheme, _, rest = self.store_url.partition("://")
        _, at, place = rest.partition("?")[0].rpartition("@")
        return f"{scheme}://{'***@' if at else ''}{place}"

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **options: object) -> Self:
        """Settings from options (None: not given) over variables of `environ` (os.environ) over defaults.

        An empty variable counts as not set. Raises SettingsError with a line for every problem.
        """
        environ = os.environ if environ is None else environ
        if unknown := options.keys() - cls.model_fields.keys():
            raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
        labels = {name: label_of(name) for name in FIELDS}
        values: dict[str, object] = {
            name: environ[variable_of(name)] for name in FIELDS if environ.get(variable_of(name))
        }
        if "store_url" not in values and environ.get("REDIS_URL"):
            values["store_url"] = environ["REDIS_URL"]
            labels["store_url"] = "REDIS_URL"
        if environ.get("API_KEY"):
            listed = values.get("api_keys")
            values["api_keys"] = [*(_split(str(listed)) if listed else ()), environ["API_KEY"].strip()]
            labels["api_keys"] = "TRACKER_API_KEYS and API_KEY" if listed else "API_KEY"
        for name, value in options.items():
            if value is not None:
                values[name] = value
                labels[name] = label_of(name)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = [line for problem in error.errors() for line in cls._lines(labels, dict(problem))]
        # Not inside the except clause: the ValidationError holds what was typed, secrets too, and must not be chained.
        raise SettingsError(*problems)

    @classmethod
    def _lines(cls, labels: Mapping[str, str], problem: Mapping[str, Any]) -> list[str]:
        """The line or lines for one pydantic error."""
        ours = problem["ctx"]["error"] if problem["type"] == "value_error" else None
        if not problem["loc"]:
            return str(ours).splitlines()
        name = str(problem["loc"][0])
        value = str(problem["input"])
        text = str(ours) if ours else f"{cls._expected(name)}, not {quoted(value)}"
        if name == "port" and value.startswith(("tcp://", "udp://")):
            text += " (Kubernetes sets it for a Service named tracker; give the pod a TRACKER_PORT of its own)"
        return [f"{labels[name]}: {text}"]

    @classmethod
    def _expected(cls, name: str) -> str:
        schema = cls.model_json_schema()["properties"][name]
        if choices := schema.get("enum"):
            return f"must be {', '.join(choices[:-1])} or {choices[-1]}"
        if "minimum" in schema:
            kind = "a whole number" if schema["type"] == "integer" else "a number"
            return f"must be {kind} from {schema['minimum']} to {schema['maximum']}"
        return "must be text"

    @classmethod
    def table(cls) -> list[Setting]:
        """All settings in order, for the documentation and the command line."""
        defaults = cls().to_environment()
        schema = cls.model_json_schema()["properties"]
        return [
            Setting(
                variable_of(name),
                option_of(name),
                defaults.get(variable_of(name), ""),
                schema[name].get("unit", ""),
                schema[name]["description"],
            )
            for name in FIELDS
        ]

    @staticmethod
    def unknown_variables(environ: Mapping[str, str]) -> list[str]:
        """Variables that look like settings but are none: a typo must not go unnoticed. Names only, sorted."""
        known = CLIENT_VARIABLES | {variable_of(name) for name in FIELDS}
        return sorted(
            name
            for name in environ
            if name.startswith(PREFIX) and name not in known and not KUBERNETES_LINK.fullmatch(name)
        )

    def to_environment(self) -> dict[str, str]:
        """The variables that make `load` in another process come to the same settings; keys are not among them."""
        values = {name: getattr(self, name) for name in FIELDS if name not in SECRET_FIELDS}
        return {
            variable_of(name): ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value not in (None, ())
        }

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        yield from super().__repr_args__()
        yield "store_url", self.store_url_redacted

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        if not HOST.fullmatch(value):
            raise ValueError(f"must be an address or a host name, without brackets or port, not {quoted(value)}")
        return value

    @field_validator("store_url")
    @classmethod
    def _store_url(cls, value: str) -> str:
        # No part of the value goes into a message: with a password that is not encoded, any part of it may be secret.
        scheme, separator, _ = value.partition("://")
        if not separator:
            raise ValueError("must be a URL such as redis://localhost:6379/0 or memory://")
        if scheme in SENTINEL_SCHEMES:
            _check_parameters((name for name, _ in SentinelUrl.parse(value).parameters), SENTINEL_PARAMETERS)
            return value
        if scheme in CLUSTER_SCHEMES:
            _check_parameters((name for name, _ in ClusterUrl.parse(value).parameters), CLUSTER_PARAMETERS)
            return value
        if scheme not in ("memory", "redis", "rediss", "unix"):
            raise ValueError(
                "must begin with memory://, redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
            )
        if scheme == "memory":
            if value != MEMORY_URL:
                raise ValueError("must be just memory://, with nothing after it")
            return value
        try:
            url = urlsplit(value)
            _ = url.port
            parameters = parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query))
        except ValueError:
            url, parameters = None, []
        if url is None or url.fragment or (not url.path if scheme == "unix" else not url.hostname):
            raise ValueError(
                "must be a URL such as redis://user:password@localhost:6379/0 or unix:///path/to/socket, "
                "with special characters in the password percent-encoded"
            )
        databases = [text for name, text in parameters if name == "db"]
        if scheme != "unix":
            databases.append(url.path.removeprefix("/") or "0")
        if not all(re.fullmatch(r"[0-9]{1,4}", text) for text in databases):
            raise ValueError("must name its database by a number, as in redis://localhost:6379/0")
        _check_parameters((name for name, _ in parameters), STORE_URL_PARAMETERS)
        return value

    @field_validator("namespace")
    @classmethod
    def _namespace(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError(f"must be 1 to 64 of the characters A-Z a-z 0-9 . _ -, not {quoted(value)}")
        return value

    @field_validator("agent_cleanup", "log_level", "log_format", "access_log", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _cors_origins(cls, value: object) -> object:
        origins = _split(value) if isinstance(value, str) else value
        if not isinstance(origins, (list, tuple)):
            raise ValueError("must be origins, comma-separated")
        return tuple(_origin(str(entry), position) for position, entry in enumerate(origins, start=1))

    @field_validator("api_keys", "read_api_keys", mode="before")
    @classmethod
    def _digests(cls, value: object, info: Any) -> object:
        scope: Scope = "read" if info.field_name == "read_api_keys" else "write"
        entries = _split(value) if isinstance(value, str) else value
        if not isinstance(entries, (list, tuple)):
            raise ValueError("must be keys, comma-separated")
        if value and not entries:
            raise ValueError("is set, but holds no key")
        keys: dict[bytes, ApiKey] = {}
        for position, entry in enumerate(entries, start=1):
            if isinstance(entry, ApiKey):
                keys.setdefault(entry.digest, entry)
                continue
            if not VISIBLE_ASCII.fullmatch(str(entry)):
                raise ValueError(f"key {position} of {len(entries)} must be visible ASCII characters, without spaces")
            prefix = "read-key" if scope == "read" else "key"
            digest = digest_of(str(entry))
            keys.setdefault(digest, ApiKey(f"{prefix}-{len(keys) + 1}", scope, digest))
        return tuple(keys.values())

    @field_validator("webhook_url")
    @classmethod
    def _webhook_url(cls, value: str) -> str:
        # Not quoted: receivers put secrets into the path.
        if value and not (WEBHOOK_URL.fullmatch(value) and value.isprintable() and _has_place(value)):
            raise ValueError("must be a URL such as https://example.org/hooks/tracker, without spaces or fragment")
        return value

    @field_validator("webhook_secret", mode="before")
    @classmethod
    def _webhook_secret(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            secret = base64.b64decode(value.strip().removeprefix("whsec_"), validate=True)
        except ValueError:
            secret = b"?"
        if value and not 24 <= len(secret) <= 64:
            raise ValueError("must be whsec_ and 24 to 64 bytes in base64, as `openssl rand -base64 32` makes them")
        return secret

    @field_validator("webhook_types", mode="before")
    @classmethod
    def _webhook_types(cls, value: object) -> object:
        types = tuple(dict.fromkeys(_split(value))) if isinstance(value, str) else value
        if not types or not set(types) <= set(EVENT_TYPES):  # type: ignore[call-overload]
            raise ValueError(f"must be some of {', '.join(EVENT_TYPES)}, comma-separated")
        return types

    @field_validator("api_keys_file", mode="before")
    @classmethod
    def _file(cls, value: object) -> object:
        if isinstance(value, str) and (not value.strip() or "\0" in value):
            raise ValueError("must be the path of a file")
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        problems = []
        if self.in_memory and self.workers > 1:
            problems.append(
                f"TRACKER_WORKERS (--workers): memory:// works with one worker only, not {self.workers}; "
                "for more, name a Redis in TRACKER_STORE_URL (--store-url)"
            )
        if not self.authenticated and not is_loopback(self.host):
            problems.append(
                f"TRACKER_HOST (--host): {quoted(self.host)} is not a loopback address, which needs API keys: set "
                "TRACKER_API_KEYS or TRACKER_API_KEYS_FILE (--api-keys-file), or listen on 127.0.0.1"
            )
        if self.webhook_url and not self.webhook_secret:
            problems.append(
                "TRACKER_WEBHOOK_SECRET: needed with TRACKER_WEBHOOK_URL, so that the receiver can tell who sends"
            )
        if {key.digest for key in self.api_keys} & {key.digest for key in self.read_api_keys}:
            problems.append("TRACKER_READ_API_KEYS: holds a key that may also write; a key has one scope")
        if problems:
            raise ValueError("\n".join(problems))
        return self


FIELDS: tuple[str, ...] = tuple(Settings.model_fields)
# Secrets come by the environment or the file: an option would show them to everybody on the machine who can run ps.
SECRET_FIELDS = frozenset({"api_keys", "read_api_keys", "webhook_secret", "webhook_url"})


def variable_of(name: str) -> str:
    """The environment variable of a field of Settings."""
    return PREFIX + name.upper()


def option_of(name: str) -> str:
    """The `tracker serve` option of a field of Settings, or "" for those that have none."""
    return "" if name in SECRET_FIELDS else "--" + name.replace("_", "-")


def label_of(name: str) -> str:
    """How messages call a field of Settings: `TRACKER_PORT (--port)`."""
    option = option_of(name)
    return f"{variable_of(name)} ({option})" if option else variable_of(name)


def suggestion(variable: str) -> str | None:
    """The known variable that an unknown one was likely meant to be."""
    return next(
        iter(difflib.get_close_matches(variable, [variable_of(name) for name in FIELDS], n=1, cutoff=0.8)), None
    )


def quoted(value: str) -> str:
    """A value for a one-line message: in quotes, control characters escaped, long ones cut."""
    return json.dumps(value if len(value) <= 80 else value[:77] + "...")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`: 127.0.0.0/8, ::1 or localhost."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Not is_loopback for IPv6: since Python 3.13 that also says yes to addresses mapped from IPv4.
    return address in ipaddress.ip_network("127.0.0.0/8") if address.version == 4 else host == "::1"


def can_be_looked_up(host: str) -> bool:
    """Whether a resolver is given it at all: not when it is empty, or with a label that is empty or too long."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def _has_place(url: str) -> bool:
    """Whether a URL names a host and port that there may be."""
    try:
        parts = urlsplit(url)
        return can_be_looked_up(parts.hostname or "") and parts.port != 0
    except ValueError:
        return False


def _check_parameters(names: Iterable[str], allowed: frozenset[str]) -> None:
    if not set(names) <= allowed:
        raise ValueError(f"may have no parameters but {', '.join(sorted(allowed))}")


def _split(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _origin(entry: str, position: int) -> str:
    """An origin as browsers send it: lower case, no default port."""
    origin = entry.lower()
    if origin != "*" and not ORIGIN.fullmatch(origin):
        # Not quoted: an origin with user:password@ in it is one of the ways to get this wrong.
        raise ValueError(f"entry {position} must be * or scheme://host[:port], without path or slash at the end")
    for scheme, port in DEFAULT_PORTS.items():
        if origin.startswith(scheme):
            origin = origin.removesuffix(port)
    return origin
