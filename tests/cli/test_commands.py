"""The commands that call: what they print, what they change, and the exit status that scripts go by."""

from __future__ import annotations

import json
import re
import socket

import pytest

from tests.api.conftest import BASE
from tests.cli.conftest import READ_KEY, Commands
from tracker.cli.calling import AWAY, NOTHING, REFUSED, WRONG_USE

HOSTILE = "\x1b[31mred\x1b[0m [bold]not bold[/] \u202eback\n<b>"


def lines(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


# --- list and show ----------------------------------------------------------------------------------------------------


def test_list_is_plain_where_nobody_watches(commands: Commands, agent: str) -> None:
    first = commands.start("t1-" + agent, agent)
    second = commands.start(None, agent, taskDescription=HOSTILE)
    result = commands("list", "--agent", agent)
    assert (result.exit_code, result.stderr) == (0, "")
    assert lines(result.stdout) == [
        [s["id"], agent, s["taskId"] or "", "manual", s["startedAt"], s["expiresAt"], ""] for s in (second, first)
    ]


def test_list_as_json_is_what_the_api_says(commands: Commands, agent: str) -> None:
    commands.start("t1-" + agent, agent, metadata={"k": HOSTILE})
    assert json.loads(commands("list", "--agent", agent, "--json").stdout) == commands.live(agent)
    assert json.loads(commands("list", "--agent", agent + "x", "--json").stdout) == []


@pytest.mark.usefixtures("terminal")
def test_list_is_a_table_for_people_and_texts_are_texts(commands: Commands, agent: str) -> None:
    commands.start(f"{HOSTILE}{agent}", agent, taskDescription=HOSTILE)
    shown = commands("list", "--agent", agent).stdout
    assert "\\x1b[31mred" in shown
    assert "[bold]not bold" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
    assert "1 running" in shown
    assert "Nothing runs." in commands("list", "--agent", agent + "x").stdout


@pytest.mark.parametrize(("limit", "told"), [("2", "2 running, and there are more"), ("3", "3 running\n")])
@pytest.mark.usefixtures("terminal")
def test_list_shows_no_more_than_asked_for_and_tells_of_the_rest(
    commands: Commands, agent: str, limit: str, told: str
) -> None:
    for number in range(3):
        commands.start(f"{number}-{agent}", agent)
    assert told in commands("list", "--agent", agent, "--limit", limit).stdout


def test_list_gives_ids_for_other_commands(commands: Commands, agent: str) -> None:
    made = {commands.start(f"{number}-{agent}", agent)["id"] for number in range(3)}
    assert set(commands("list", "--agent", agent, "--ids").stdout.split()) == made


def test_show_takes_an_id_or_a_task(commands: Commands, agent: str) -> None:
    session = commands.start("t/1 " + agent, agent, metadata={"k": "v"})
    for which in (session["id"], session["taskId"]):
        assert json.loads(commands("show", which, "--json").stdout) == session
    plain = dict(lines(commands("show", session["id"]).stdout))
    assert plain["taskId"] == session["taskId"]
    assert plain["metadata.k"] == "v"


@pytest.mark.usefixtures("terminal")
def test_show_is_readable(commands: Commands, agent: str) -> None:
    commands.start("t1-" + agent, agent, taskDescription=HOSTILE)
    shown = commands("show", "t1-" + agent).stdout
    assert "\\x1b[31mred" in shown
    assert "startedAt" in shown


def test_show_of_nobody_is_one_line_and_a_status(commands: Commands, agent: str) -> None:
    result = commands("show", agent)
    assert (result.exit_code, result.stdout) == (NOTHING, "")
    assert result.stderr == f"tracker: no live session has the id or the task {agent}\n"


# --- what ends runs ---------------------------------------------------------------------------------------------------


def test_end_and_stop_take_several_and_tell_which_were_not_there(commands: Commands, agent: str) -> None:
    first, second = (commands.start(f"{number}-{agent}", agent) for number in range(2))
    stopped = commands("stop", first["id"], "nobody-" + agent, second["taskId"])
    assert stopped.exit_code == NOTHING
    assert stopped.stdout == f"{first['id']} asked to stop\n{second['id']} asked to stop\n"
    assert f"nobody-{agent}" in stopped.stderr
    assert all(session["stopRequestedAt"] for session in commands.live(agent))
    ended = commands("end", first["taskId"], second["id"])
    assert (ended.exit_code, ended.stdout) == (0, f"{first['id']} ended\n{second['id']} ended\n")
    assert commands.live(agent) == []


def test_cleanup_of_live_sessions_wants_a_yes_where_nobody_can_be_asked(commands: Commands, agent: str) -> None:
    commands.start("t1-" + agent, agent)
    refused = commands("cleanup", "--agent", agent)
    assert refused.exit_code == WRONG_USE
    assert refused.stderr == "tracker: this may end live sessions: say --yes\n"
    assert len(commands.live(agent)) == 1
    done = commands("cleanup", "--agent", agent, "--yes")
    assert (done.exit_code, done.stdout) == (0, "1 ended\n")


@pytest.mark.parametrize(("typed", "left", "status"), [("n\n", 1, 1), ("y\n", 0, 0)])
def test_cleanup_asks_on_a_terminal(
    commands: Commands, agent: str, monkeypatch: pytest.MonkeyPatch, typed: str, left: int, status: int
) -> None:
    monkeypatch.setattr("tracker.cli.ending.asked", lambda: True)
    commands.start("t1-" + agent, agent)
    result = commands("cleanup", "--agent", agent, typed=typed)
    assert result.exit_code == status
    assert f"of agent {agent}" in result.stderr
    assert len(commands.live(agent)) == left


def test_cleanup_of_what_has_expired_asks_nobody(commands: Commands) -> None:
    result = commands("cleanup")
    assert result.exit_code == 0
    assert re.fullmatch(r"\d+ ended\n", result.stdout)


# --- stats and events -------------------------------------------------------------------------------------------------


def test_stats_are_lines_or_json_or_tables(commands: Commands, agent: str, request: pytest.FixtureRequest) -> None:
    commands.start("t1-" + agent, agent)
    plain = dict(lines(commands("stats").stdout))
    assert plain[f"agent.{agent}"] == "1"
    assert {"sessions", "created", "ended.expired", "trigger.manual"} <= plain.keys()
    assert commands("stats", "--json").stdout.startswith("{")
    request.getfixturevalue("terminal")
    assert re.search(r"\d+ sessions of \d+ agents", commands("stats").stdout)


def test_events_are_the_last_ones_oldest_first(commands: Commands, agent: str) -> None:
    session = commands.start("t1-" + agent, agent)
    commands.client.put(f"{BASE}/provider-session/t1-{agent}", json={"providerSessionId": "p-1"})
    commands("end", session["id"])
    told = lines(commands("events", "--agent", agent).stdout)
    assert [(row[2], row[3]) for row in told] == [("created", ""), ("updated", ""), ("ended", "deleted")]
    assert [row[4:7] for row in told] == [[session["id"], agent, session["taskId"]]] * 3
    assert told[-1][7] == "p-1"
    assert lines(commands("events", "--agent", agent, "-n", "1").stdout) == told[-1:]
    assert lines(commands("events", "--agent", agent, "--type", "ended").stdout) == told[-1:]
    assert lines(commands("events", "--agent", agent, "--after", told[0][0]).stdout) == told[1:]
    (event,) = map(json.loads, commands("events", "--agent", agent, "--json", "-n", "1").stdout.splitlines())
    assert event["session"]["id"] == session["id"]


@pytest.mark.usefixtures("terminal")
def test_events_are_readable_and_a_crash_tells_what_to_resume(commands: Commands, agent: str) -> None:
    commands.start("t1-" + agent, agent, ttlSeconds=1)
    commands.client.put(f"{BASE}/provider-session/t1-{agent}", json={"providerSessionId": HOSTILE})
    shown = ""
    for _ in range(100):
        shown = commands("events", "--agent", agent, "--type", "ended").stdout
        if shown:
            break
        commands("cleanup")
    assert "expired" in shown
    assert "resume \\x1b[31mred" in shown


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["list"], ["show", "x"], ["stats"], ["events"], ["end", "x"], ["cleanup"]])
def test_a_wrong_key_says_what_to_do(commands: Commands, arguments: list[str]) -> None:
    result = commands(*arguments, key="wrong")
    assert (result.exit_code, result.stdout) == (REFUSED, "")
    assert result.stderr == "tracker: the tracker does not know this key: set TRACKER_API_KEY to one that it does\n"


def test_a_read_key_may_look_and_not_touch(commands: Commands, agent: str) -> None:
    session = commands.start("t1-" + agent, agent)
    assert commands("show", session["id"], key=READ_KEY).exit_code == 0
    result = commands("end", session["id"], key=READ_KEY)
    assert result.exit_code == REFUSED
    assert result.stderr == "tracker: this key may only read: set TRACKER_API_KEY to one that may write\n"


def test_no_server_says_where_it_was_looked_for_and_what_to_do(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracker.cli.calling.PATIENCE_SECONDS", 0.1)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{holder.getsockname()[1]}"
        result = commands("stats", url=url)
    assert result.exit_code == AWAY
    assert url in result.stderr
    assert "tracker serve" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_url_that_is_none_is_wrong_use(commands: Commands) -> None:
    result = commands("stats", url="localhost")
    assert result.exit_code == WRONG_USE
    assert "must be one such as http://localhost:3013" in result.stderr


@pytest.mark.parametrize("url", ["http://a..b", "http://a:99999", "http://a?"])
def test_a_url_that_can_lead_nowhere_is_wrong_use_in_one_line(commands: Commands, url: str) -> None:
    result = commands("stats", url=url)
    assert result.exit_code == WRONG_USE
    assert result.stderr.startswith("tracker: The tracker's URL ")
    assert result.stderr.count("\n") == 1


def test_a_bad_value_is_told_by_the_server(commands: Commands) -> None:
    result = commands("events", "--after", "nonsense")
    assert result.exit_code == REFUSED
    assert "Not an event id of this tracker" in result.stderr
