"""The recipe of docs/events.md, run as it stands there, and killed now and then."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.api.conftest import BASE, serving

PAGE = Path(__file__).parent.parent / "docs" / "events.md"
PATIENCE_SECONDS = 60


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_recipe_notes_each_death_once_however_often_it_is_killed(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    database = tmp_path / "runs.db"

    def rows(query: str) -> list[tuple[str, ...]]:
        if not database.exists():
            return []
        with sqlite3.connect(database, timeout=PATIENCE_SECONDS) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
            found = db.execute(query).fetchall() if {"died", "running", "position"} <= tables else []
        db.close()
        return found

    with serving(tmp_path / "log", TRACKER_SWEEP_INTERVAL_SECONDS="0.1") as server:
        clean = {name: value for name, value in os.environ.items() if name != "API_KEY"}
        environment = {**clean, "TRACKER_URL": server.url, "DATABASE": str(database)}
        expected: list[str] = []
        for number in range(3):
            follower = subprocess.Popen([sys.executable, "-c", recipe], env=environment)
            try:
                for name, ttl in (("dies", 1), ("lives", 1800), ("ends", 1800)):
                    run = {"agentId": "a", "triggerType": "t", "taskId": f"{name}{number}", "ttlSeconds": ttl}
                    httpx.post(server.url + BASE, json=run).raise_for_status()
                httpx.put(f"{server.url}{BASE}/provider-session/dies{number}", json={"providerSessionId": f"p{number}"})
                httpx.delete(f"{server.url}{BASE}/by-task/ends{number}").raise_for_status()
                # The first is killed when all is noted, the others somewhere on the way.
                expected.append(f"dies{number}")
                eventually(lambda: len(rows("SELECT * FROM running")) > 0)
                if number == 0:
                    eventually(lambda: rows("SELECT task, resume FROM died") == [("dies0", "p0")])
                    position = "UPDATE position SET id = '1-1'"
            finally:
                follower.kill()
                follower.wait()
        # Where the feed no longer holds the position it begins anew, and still notes nothing twice.
        with sqlite3.connect(database) as db:
            db.execute(position)
        db.close()
        follower = subprocess.Popen([sys.executable, "-c", recipe], env=environment)
        try:
            deaths = [(f"dies{number}", f"p{number}") for number in range(3)]
            eventually(lambda: sorted(rows("SELECT task, resume FROM died")) == deaths)
            eventually(lambda: len(rows("SELECT * FROM running")) == 3)
        finally:
            follower.kill()
            follower.wait()
