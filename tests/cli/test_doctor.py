"""`tracker doctor`: what it prints for people and for programs, and what it exits with."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.cli.conftest import on_store
from tests.redis_server import RedisServer
from tests.store.wire import a_run
from tracker.cli.doctor import report
from tracker.cli.main import app
from tracker.settings import Settings
from tracker.store.agreement import Agreement, Finding
from tracker.store.doctor import Check, Examination
from tracker.store.store import Store

pytestmark = pytest.mark.usefixtures("environ")

SETTINGS = Settings(store_url="redis://me:humble@host:1/2")


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


async def damaged(store: Store) -> None:
    for number in range(5):
        await store.sessions.create(a_run(f"t{number}"))
    await store.sweeper.sweep()
    await store.scripts.client.delete(store.scripts.shards[0].prefix + "deadlines")


def test_problems_are_found_told_and_mended(redis_server: RedisServer, namespace: str) -> None:
    on_store(redis_server, namespace, damaged)
    place = ("--store-url", redis_server.url, "--namespace", namespace)
    found = doctor(*place)
    assert found.exit_code == 1
    assert "5 x deadlines" in found.stdout
    assert "tracker doctor --repair mends the indices" in found.stdout
    assert "\x1b" not in found.stdout, "plain where it is no terminal"

    told = json.loads(doctor(*place, "--json").stdout)
    assert (told["ok"], told["sessions"], len(told["findings"])) == (False, 5, 5)
    assert {finding["kind"] for finding in told["findings"]} == {"deadlines"}
    assert not any(finding["mended"] for finding in told["findings"])

    mended = json.loads(doctor(*place, "--json", "--repair").stdout)
    assert all(finding["mended"] for finding in mended["findings"])
    assert len(mended["findings"]) == 5
    assert json.loads(doctor(*place, "--json").stdout)["findings"] == []


def test_the_store_comes_from_the_environment_and_other_settings_do_not_matter(
    redis_server: RedisServer, namespace: str, environ: dict[str, str]
) -> None:
    on_store(redis_server, namespace, damaged)
    environ |= {"REDIS_URL": redis_server.url, "TRACKER_NAMESPACE": namespace, "TRACKER_HOST": "0.0.0.0"}
    assert json.loads(doctor("--json").stdout)["sessions"] == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "tracker doctor: memory:// is inside the server's process"),
        (("--store-url", "http://x"), "tracker doctor: TRACKER_STORE_URL (--store-url): must begin with"),
        (("--store-url", "redis://x", "--shards", "0"), "tracker doctor: TRACKER_SHARDS (--shards): must be"),
        (("--store-url", "redis://me:humble@127.0.0.1:1"), "tracker doctor: redis://***@127.0.0.1:1: the store cannot"),
    ],
)
def test_where_it_cannot_look_it_says_why_in_a_line_and_exits_with_2(arguments: tuple[str, ...], says: str) -> None:
    result = doctor(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1
    assert "humble" not in result.stderr


def printed(examination: Examination, width: int = 200) -> str:
    page = io.StringIO()
    report(Console(file=page, width=width), SETTINGS, examination)
    return page.getvalue()


def test_a_store_that_is_well_takes_a_line_per_check() -> None:
    page = printed(Examination([Check("clock", "good", "fine")], Agreement(1234, [], [])))
    assert [line.rstrip() for line in page.splitlines()] == [
        "redis://***@host:1/2, namespace tracker",
        "✓  clock    fine",
        "✓  indices  1,234 sessions agree with their indices",
        "All is well.",
    ]


@pytest.mark.parametrize(
    ("findings", "well", "says"),
    [
        ([Finding(0, "count", "agents a1", True)], True, "a wrong count: 'agents a1' (mended)"),
        ([Finding(0, "rival", "session:x", False)], False, "(a person must look)"),
        ([Finding(0, "stray", f"task:\x1b[31m{n}", False) for n in range(9)], False, r"'task:\x1b[31m1' and 7 more"),
    ],
)
def test_findings_are_told_by_kind_with_examples(findings: list[Finding], well: bool, says: str) -> None:
    examination = Examination([], Agreement(9, findings, [3]))
    page = printed(examination)
    assert examination.well == well
    assert says in page
    assert "\x1b" not in page
    assert ("All is well." in page) == well
    assert ("--repair" in page) == (findings[0].kind == "stray")
    assert "not compared in shard 3" in page
