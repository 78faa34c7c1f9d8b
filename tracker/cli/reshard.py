"""`tracker reshard`: gives a store that holds data more shards, while no server is up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from tracker.cli.doctor import CANNOT_LOOK, store_settings
from tracker.errors import StoreError, StoreUnavailable
from tracker.settings import Settings, SettingsError

if TYPE_CHECKING:  # other commands need not wait for the store to be imported
    from tracker.store.agreement import Agreement
    from tracker.store.reshard import Resharded


def reshard(
    to: Annotated[int, typer.Option(help="How many shards the store shall have: more than now.")],
    store_url: Annotated[
        str | None, typer.Option(help="The store, as for `tracker serve` (TRACKER_STORE_URL or REDIS_URL).")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Prefix of the keys (TRACKER_NAMESPACE).")] = None,
) -> None:
    """Give a store that holds data more shards. Stop all servers first, and start them with the new number afterwards.

    No session is lost, and none expires for it. Run it again when it is interrupted: until it is done no server starts.
    Exit status: 0 done, 1 done but the indices disagree with the sessions (`tracker doctor` tells how), 2 not done.
    """
    try:
        settings = store_settings(store_url=store_url, namespace=namespace, shards=str(to))
    except SettingsError as error:
        _refuse(str(error).replace("TRACKER_SHARDS (--shards)", "--to"))
    if settings.in_memory:
        _refuse("memory:// is inside the server's process; name the Redis with --store-url or TRACKER_STORE_URL")
    try:
        done, looked = asyncio.run(_reshard(settings))
    except StoreUnavailable as error:
        _refuse(f"{settings.store_url_redacted}: {error}: run it again")
    except StoreError as error:
        _refuse(str(error))
    typer.echo(_report(done, looked))
    raise typer.Exit(1 if looked.findings else 0)


def _refuse(problem: str) -> NoReturn:
    typer.echo("\n".join(f"tracker reshard: {line}" for line in problem.splitlines()), err=True)
    raise typer.Exit(CANNOT_LOOK)


async def _reshard(settings: Settings) -> tuple[Resharded, Agreement]:
    from tracker.store.agreement import agreement
    from tracker.store.reshard import reshard
    from tracker.store.store import open_store

    progress = Console(stderr=True)
    async with open_store(settings) as store:
        with progress.status("looking") as status:
            done = await reshard(store.scripts, lambda moved: status.update(f"moving: {moved:,} sessions so far"))
            status.update("looking whether indices and sessions agree")
            return done, await agreement(store.scripts, mend=False)


def _report(done: Resharded, looked: Agreement) -> str:
    """What people read."""
    if done.before == done.after:
        lines = [f"The store has {done.after:,} shards, and nothing is left to move."]
    else:
        lines = [
            f"Moved {done.moved:,} of {looked.sessions:,} sessions: {done.before:,} shards are {done.after:,} now."
        ]
    lines += [f"Left where it was, for it is no whole session: {key!r}" for key in done.broken]
    if looked.findings:
        lines.append(f"There are {len(looked.findings):,} disagreements with indices: see tracker doctor.")
    else:
        lines.append("All sessions agree with their indices.")
    lines.append(f"Start the servers with TRACKER_SHARDS={done.after}.")
    return "\n".join(lines)
