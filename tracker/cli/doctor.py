"""`tracker doctor`: looks into the store itself, as `tracker serve` does, and says what an operator should know."""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracker.errors import StoreError
from tracker.settings import Settings, SettingsError, variable_of

if TYPE_CHECKING:  # other commands need not wait for the store to be imported
    from tracker.store.agreement import Agreement
    from tracker.store.doctor import Examination

CANNOT_LOOK = 2
EXAMPLES = 2
"""Findings of one kind that are shown; `--json` has them all."""
OF_THE_STORE = (
    "store_url",
    "namespace",
    "shards",
    "ttl_seconds",
    "grace_seconds",
    "store_timeout_seconds",
    "feed_length",
)
MARKS = {"good": ("✓", "green"), "note": ("i", "cyan"), "problem": ("✗", "red")}


def doctor(
    store_url: Annotated[
        str | None, typer.Option(help="The store, as for `tracker serve` (TRACKER_STORE_URL or REDIS_URL).")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Prefix of the keys (TRACKER_NAMESPACE).")] = None,
    shards: Annotated[str | None, typer.Option(help="Parts of the key space (TRACKER_SHARDS).")] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Mend indices that disagree with the sessions. Live sessions stay as they are."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Examine the store: can it be reached, is it set up not to lose sessions, do its indices agree with the sessions.

    Safe on a store in use: it looks in small steps, and never writes without --repair. Exit status: 0 all is well (or
    mended), 1 there are problems, 2 it could not look.
    """
    try:
        settings = store_settings(store_url=store_url, namespace=namespace, shards=shards)
    except SettingsError as error:
        _refuse(str(error))
    if settings.in_memory:
        _refuse("memory:// is inside the server's process; name the Redis with --store-url or TRACKER_STORE_URL")
    try:
        examination = asyncio.run(_examine(settings, repair, quiet=as_json))
    except StoreError as error:
        _refuse(f"{settings.store_url_redacted}: {error}")
    if as_json:
        typer.echo(json.dumps(as_object(settings, examination), indent=2))
    else:
        report(Console(), settings, examination)
    raise typer.Exit(0 if examination.well else 1)


def _refuse(problem: str) -> NoReturn:
    typer.echo("\n".join(f"tracker doctor: {line}" for line in problem.splitlines()), err=True)
    raise typer.Exit(CANNOT_LOOK)


def store_settings(**options: str | None) -> Settings:
    """Of what is set for the server only what is about the store: the rest need not be right for looking at it."""
    names = {"REDIS_URL", *map(variable_of, OF_THE_STORE)}
    return Settings.load({name: value for name, value in os.environ.items() if name in names}, **options)


async def _examine(settings: Settings, repair: bool, *, quiet: bool) -> Examination:
    from tracker.store.doctor import examine
    from tracker.store.store import open_store

    progress = Console(stderr=True)
    async with open_store(settings) as store:
        if quiet or not progress.is_terminal:
            return await examine(store.scripts, mend=repair)
        with progress.status("looking") as status:
            return await examine(
                store.scripts, mend=repair, tell=lambda keys: status.update(f"looking: {keys:,} keys so far")
            )


def as_object(settings: Settings, examination: Examination) -> dict[str, Any]:
    """What --json prints."""
    looked = examination.agreement
    return {
        "ok": examination.well,
        "store": settings.store_url_redacted,
        "namespace": settings.namespace,
        "checks": [check._asdict() for check in examination.checks],
        "sessions": looked.sessions if looked else None,
        "uncountedShards": looked.uncounted if looked else [],
        "findings": [
            {**finding._asdict(), "meaning": finding.meaning} for finding in (looked.findings if looked else ())
        ],
    }


def report(console: Console, settings: Settings, examination: Examination) -> None:
    """What people read; plain where it is no terminal."""
    console.print(Text.assemble((settings.store_url_redacted, "bold"), f", namespace {settings.namespace}"))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in examination.checks:
        mark, colour = MARKS[check.state]
        table.add_row(Text(mark, colour), check.name, Text(check.text, colour if check.state != "good" else ""))
    if examination.agreement:
        _add_agreement(table, examination.agreement)
    else:
        table.add_row(Text("i", "cyan"), "indices", "not looked at")
    console.print(table)
    console.print(_closing(examination))


def _add_agreement(table: Table, looked: Agreement) -> None:
    kinds = defaultdict(list)
    for finding in looked.findings:
        kinds[finding.kind].append(finding)
    mark, colour = MARKS["good" if all(finding.mended for finding in looked.findings) else "problem"]
    found = "agree with their indices" if not looked.findings else f"and {len(looked.findings):,} disagreements"
    table.add_row(Text(mark, colour), "indices", f"{looked.sessions:,} sessions {found}")
    for kind, findings in kinds.items():
        mended = all(finding.mended for finding in findings)
        examples = ", ".join(f"{one.key!r}" for one in findings[:EXAMPLES])
        more = f" and {len(findings) - EXAMPLES:,} more" if len(findings) > EXAMPLES else ""
        state = "mended" if mended else "" if findings[0].mendable else "a person must look"
        mark, colour = ("+", "green") if mended else MARKS["problem"]
        table.add_row(
            Text(f"  {mark}", colour),
            Text(f"{len(findings):,} x {kind}", colour),
            Text.assemble(
                f"{findings[0].meaning}: ", (examples + more, "dim"), (f" ({state})" if state else "", colour)
            ),
        )
    if looked.uncounted:
        shards = ", ".join(map(str, looked.uncounted))
        table.add_row(Text("i", "cyan"), "counts", f"not compared in shard {shards}, where too much happens or moves")


def _closing(examination: Examination) -> Text:
    if examination.well:
        return Text("All is well.", "bold green")
    findings = examination.agreement.findings if examination.agreement else []
    mendable = any(not finding.mended and finding.mendable for finding in findings)
    return Text("There are problems." + (" tracker doctor --repair mends the indices." if mendable else ""), "bold red")
