"""`tracker serve`: the server, with an option for every setting but the keys."""

import asyncio
import inspect
import logging
import logging.config
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from tracker import __version__
from tracker.api.auth import Keyring
from tracker.cli.logs import log_config
from tracker.cli.protocol import Protocol
from tracker.cli.workers import Workers
from tracker.errors import SchemaMismatch, StoreError
from tracker.settings import FIELDS, Settings, SettingsError, option_of, suggestion, variable_of

WRONG_SETTINGS = 2
CANNOT_LISTEN = 1
SHUTDOWN_SECONDS = 7
"""How long requests under way get to finish when the server has drained. It has to be gone within ten seconds then."""

logger = logging.getLogger("tracker.serve")


def serve(**options: str | None) -> None:
    """Run the tracker's server. Options win over TRACKER_* variables."""
    try:
        settings = Settings.load(os.environ, **options)
        keys = Keyring.of(settings)
    except SettingsError as error:
        typer.echo(error, err=True)
        raise typer.Exit(WRONG_SETTINGS) from None
    logging.config.dictConfig(log_config(settings))
    warn_of_typos()
    try:
        with ending_well(), listen(settings) as listener:
            logger.info(greeting(settings, keys, listener))
            check_store(settings)
            run(settings, listener)
    except ListenError as error:
        typer.echo(error, err=True)
        raise typer.Exit(CANNOT_LISTEN) from None
    except SchemaMismatch as error:
        typer.echo(error, err=True)
        raise typer.Exit(WRONG_SETTINGS) from None
    except KeyboardInterrupt:
        pass  # uvicorn has shut down in order, then hands on the Ctrl-C that made it


def _options() -> list[inspect.Parameter]:
    """One option per setting. All are text: Settings judges them, so that a wrong one reads the same from anywhere."""
    rows = {row.variable: row for row in Settings.table()}
    parameters = []
    for name in FIELDS:
        if option := option_of(name):
            row = rows[variable_of(name)]
            default = " ".join(filter(None, (row.default, row.unit)))
            text = f"{row.help} Default: {default or 'none'} ({row.variable})."
            annotation = Annotated[str | None, typer.Option(option, help=text, metavar=name.rpartition("_")[2].upper())]
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
    return parameters


# typer reads the options off the signature.
serve.__signature__ = inspect.Signature(_options(), return_annotation=None)  # type: ignore[attr-defined]
serve.__annotations__ = {parameter.name: parameter.annotation for parameter in _options()}


class ListenError(Exception):
    """The address cannot be listened on; the message is one line."""


def listen(settings: Settings) -> socket.socket:
    """A socket listening on the settings' address. Raises ListenError."""
    place = f"TRACKER_HOST (--host), TRACKER_PORT (--port): cannot listen on {settings.host} port {settings.port}"
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(f"{place}: no such address") from error
    # IPv4 first: that is where "localhost" is expected, and ::1 may be in the hosts file of a machine without IPv6.
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    try:
        listener = socket.create_server(
            address,
            family=family,
            backlog=2048,
            dualstack_ipv6=family == socket.AF_INET6 and socket.has_dualstack_ipv6(),
        )
        # Accepted sockets inherit it. Without it, and without uvloop, each answer waits 40 ms for the client's ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise ListenError(f"{place}: {os.strerror(error.errno) if error.errno else error}") from error
    return listener


def check_store(settings: Settings) -> None:
    """Raises SchemaMismatch when the store is laid out for other settings. A store that is away is only told of."""
    if settings.in_memory:
        return
    from tracker.store.store import verify

    try:
        asyncio.run(verify(settings))
    except SchemaMismatch:
        raise
    except StoreError as error:
        logger.warning("starting all the same, and answering 503 until the store is back: %s", error)


def run(settings: Settings, listener: socket.socket) -> None:
    """Serve on `listener` until a signal ends it. Raises typer.Exit when no worker can start."""
    host, port = listener.getsockname()[:2]
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "http": Protocol,
        "lifespan": "on",
        "ws": "none",
        "log_config": log_config(settings),
        "access_log": False,
        "proxy_headers": False,  # nothing here depends on the client's address
        "server_header": False,
        "timeout_keep_alive": settings.keep_alive_seconds,
        "timeout_graceful_shutdown": SHUTDOWN_SECONDS,
    }
    if settings.workers == 1:
        from tracker.api.app import create_app
        from tracker.api.garbage import spare_collector

        server = uvicorn.Server(uvicorn.Config(create_app(settings), workers=1, **options))
        spare_collector()
        server.run(sockets=[listener])
        return
    os.environ.update(settings.to_environment())
    config = uvicorn.Config("tracker.api.app:from_environment", factory=True, workers=settings.workers, **options)
    with counting_together():
        workers = Workers(config, sockets=[listener], drain_seconds=settings.drain_seconds)
        workers.run()
    if workers.failed:
        raise typer.Exit(STARTUP_FAILURE)  # as uvicorn does with one worker


@contextmanager
def counting_together() -> Iterator[None]:
    """A directory in which workers count: the library of /metrics looks for it when they import it."""
    with tempfile.TemporaryDirectory(prefix="tracker-metrics-") as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        try:
            yield
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]


@contextmanager
def ending_well() -> Iterator[None]:
    """SIGTERM ends the process with status 0: before uvicorn listens to it, and when uvicorn, done, raises it again."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def greeting(settings: Settings, keys: Keyring, listener: socket.socket) -> str:
    """What is running, where, on which store, and who may call: one line."""
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    store = settings.store_url_redacted + (" (sessions are gone when it stops)" if settings.in_memory else "")
    if not keys.required:
        access = "no API keys: open to everyone on this machine, loopback only"
    elif not keys.keys:
        access = "API keys: none yet, nobody may call"
    else:
        readers = sum(key.scope == "read" for key in keys.keys)
        access = f"API keys: {len(keys.keys) - readers} may write, {readers} may only read"
    return f"tracker {__version__} on {address}, store {store}, {access}"


def warn_of_typos() -> None:
    for variable in Settings.unknown_variables(os.environ):
        meant = suggestion(variable)
        logger.warning("%s is not a setting%s", variable, f"; did you mean {meant}?" if meant else "")
