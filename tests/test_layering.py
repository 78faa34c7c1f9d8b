"""Imports go downward only: the rooms of the house, as the design has them, held by reading every import there is."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tracker

PACKAGE = Path(tracker.__file__).parent
VOCABULARY = {
    "tracker",
    "tracker.cluster_url",
    "tracker.errors",
    "tracker.hosts_url",
    "tracker.models",
    "tracker.sentinel_url",
    "tracker.settings",
}

MAY_IMPORT: dict[str, set[str]] = {
    "vocabulary": {"vocabulary"},
    "store": {"vocabulary", "store"},
    "api": {"vocabulary", "store", "api"},
    "client": {"vocabulary", "client"},
    "cli": {"vocabulary", "client", "cli"},
    "cli/serve": {"vocabulary", "store", "api", "cli", "cli/serve"},
    "cli/doctor": {"vocabulary", "store", "cli", "cli/doctor"},
    "entry": {"vocabulary", "cli", "cli/serve", "cli/doctor", "entry"},
}
"""By room. The server's command starts the API, doctor and reshard work on the store, the others talk HTTP. The
entry only lists them all.
"""

DRIVERS: dict[str, set[str]] = {
    "redis": {"store"},
    "hiredis": {"store"},
    "fakeredis": {"store"},
    "starlette": {"api", "cli/serve"},
    "uvicorn": {"cli/serve"},
    "prometheus_client": {"api"},
    "opentelemetry": {"api"},
    "typer": {"cli", "cli/serve", "cli/doctor", "entry"},
    "rich": {"cli", "cli/serve", "cli/doctor"},
    "httpx": {"client", "cli", "api"},
}
"""Which rooms may know a library; any room may know those that are not here."""


def room_of(module: str) -> str:
    if module in VOCABULARY:
        return "vocabulary"
    if module in ("tracker.__main__", "tracker.cli.main"):
        return "entry"
    if module in ("tracker.cli.serve", "tracker.cli.protocol", "tracker.cli.workers"):
        return "cli/serve"
    if module in ("tracker.cli.doctor", "tracker.cli.reshard"):
        return "cli/doctor"
    room = module.split(".")[1]
    assert room in MAY_IMPORT, f"{module} is in a room that nobody has drawn"
    return room


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imports_of(module: str) -> set[str]:
    """The modules that a module names in imports, anywhere in it, lazily or for types only; relative ones resolved."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            named = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in named}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward_only(module: str) -> None:
    room = room_of(module)
    for imported in imports_of(module):
        if imported.split(".")[0] == "tracker":
            assert room_of(imported) in MAY_IMPORT[room], f"{module} ({room}) imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_only_its_own_room_knows_a_library(module: str) -> None:
    room = room_of(module)
    for imported in imports_of(module):
        library = imported.split(".")[0]
        assert room in DRIVERS.get(library, {room}), f"{module} ({room}) imports {imported}"


def test_the_vocabulary_does_no_io() -> None:
    forbidden = {"asyncio", "socket", "ssl", "subprocess", "threading", "http", "urllib.request", "sqlite3"}
    for module in VOCABULARY:
        assert not imports_of(module) & forbidden


def test_every_import_that_is_named_exists_or_is_a_library() -> None:
    """Or the checks above would look past a module that was renamed."""
    for module in MODULES:
        for imported in imports_of(module):
            if imported.split(".")[0] == "tracker":
                assert imported in MODULES, f"{module} imports {imported}"


def test_no_room_hides_behind_a_dynamic_import() -> None:
    for module, path in MODULES.items():
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {ast.unparse(call.func) for call in calls}
        assert not names & {"__import__", "importlib.import_module", "import_module"}, module


def test_there_are_no_rooms_for_everything() -> None:
    banned = {"utils", "util", "helpers", "helper", "common", "misc", "shared"}
    assert not [module for module in MODULES if module.rpartition(".")[2] in banned]


def test_the_libraries_that_rooms_keep_to_themselves_are_not_built_in() -> None:
    assert not DRIVERS.keys() & sys.stdlib_module_names
