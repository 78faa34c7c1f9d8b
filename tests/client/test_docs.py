"""docs/client.md: its examples run, and its tables are those of the code."""

from __future__ import annotations

import asyncio
import inspect
import re

import pytest

from tests.client.conftest import ROOT
from tests.client.test_contract import CALLS
from tracker.client import TrackerClient, errors

PAGE = (ROOT / "docs" / "client.md").read_text()


@pytest.mark.parametrize("backend", ["memory"])
async def test_the_examples_run_one_after_the_other(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKER_URL", url)
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for number, example in enumerate(examples):
        await asyncio.to_thread(exec, compile(example, f"docs/client.md, example {number + 1}", "exec"), {})
    assert capsys.readouterr().out == "held by a1\nt4 1 of 2\ndeleted t1 p-123\n"


def test_every_call_has_its_row() -> None:
    rows = re.findall(r"^\| (`.*?) \| `GET|^\| (`.*?) \| `(?:PUT|POST|DELETE)", PAGE, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", str(rows))) == sorted(CALLS)


def test_every_error_has_its_row() -> None:
    table = PAGE[PAGE.index("## Errors") :]
    assert ["TrackerClientError", *re.findall(r"^\| `(\w+)`", table, re.MULTILINE)] == re.findall(
        r"^ {4}[│ ]*(?:[├└]── )?(\w+)", errors.__doc__ or "", re.MULTILINE
    )


def test_every_argument_of_track_is_explained() -> None:
    told = set(re.findall(r"`(\w+)`", PAGE[: PAGE.index("| on a run")]))
    own = inspect.signature(TrackerClient.track).parameters.keys() - {"self", "session"}
    assert own <= told
