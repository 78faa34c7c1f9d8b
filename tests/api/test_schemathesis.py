"""Schemathesis calls the served interface as its OpenAPI document says one may, and as it says one may not.

Every operation, by examples, limits, random data and chains of calls: no 5xx, no status or body that is not in the
document, nothing accepted that it forbids, nothing refused that it allows.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import listening
from tracker.settings import Settings

# All checks are on. What the document forbids is a 400, what it allows may still be refused where no schema can tell.
CONFIGURATION = """
seed = 20261123
continue-on-failure = true

# Text within its limits, or far beyond them, may make a body of more than 64 KiB, depending on how it is encoded.
[checks]
negative_data_rejection.expected-statuses = ["400", "401", "413"]
positive_data_acceptance.expected-statuses = ["2xx", "3xx", "401", "404", "409", "413"]

# A key that was used with another body is told so.
[[operations]]
include-operation-id = "createSession"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "409", "413", "422"]

# Which positions a feed holds, and in how many shards, only the feed knows.
[[operations]]
include-operation-id = "listEvents"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "410"]
# A page that waits for a minute would be taken for one that never comes.
parameters = { "query.wait" = 0 }

# Two lists of 1000 targets keep to the schema, but are too many in all.
[[operations]]
include-operation-id = "heartbeatMany"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "413"]
"""
EXAMPLES = 25
"""Random calls of each operation: a run is some 8 s of one core, most of them for the limits."""

KEY = {"Authorization": "Bearer w-key"}

# On a machine that others use as well a run takes as long as it takes.
pytestmark = [pytest.mark.settings(api_keys="w-key"), pytest.mark.timeout(400)]


async def test_with_a_key_all_is_answered_as_told(settings: Settings, tmp_path: Path) -> None:
    async with listening(settings) as url:
        await call_all(url, tmp_path, "--header", "Authorization: Bearer w-key")
        assert await created(url) > 0


@pytest.mark.parametrize("backend", ["memory"], indirect=True)
async def test_without_a_key_all_is_refused_as_told(settings: Settings, tmp_path: Path) -> None:
    async with listening(settings) as url:
        await call_all(url, tmp_path)
        assert await created(url) == 0


async def call_all(url: str, directory: Path, *options: str) -> None:
    """Fails with the report, which has a curl command for each failure.

    Runs in a process of its own, from ``directory``: its warnings and the files that it leaves behind are not ours.
    """
    (directory / "schemathesis.toml").write_text(CONFIGURATION)
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        *("run", f"{url}/openapi.json", "--max-examples", str(EXAMPLES), "--no-color", *options),
        cwd=directory,
        env={**os.environ, "COLUMNS": "120"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        report, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, report.decode()


async def created(url: str) -> int:
    """Sessions ever created."""
    async with httpx.AsyncClient(base_url=url, headers=KEY) as client:
        stats = (await client.get("/api/active-sessions/stats")).json()
    count: int = stats["created"]
    return count
