"""Log lines: text and JSON, one record each, whatever the message holds."""

import json
import logging
import logging.config
import pickle
import sys
from collections.abc import Iterator

import pytest

from tracker.api.access import Line
from tracker.cli.logs import JsonFormatter, TextFormatter, log_config
from tracker.settings import Settings


def record(message: str, *values: object, name: str = "tracker.api", failed: bool = False) -> logging.LogRecord:
    info = None
    if failed:
        try:
            raise ValueError("bad\x1b[31m")
        except ValueError:
            info = sys.exc_info()
    made = logging.LogRecord(name, logging.INFO, "file.py", 1, message, values, info)
    made.created = 1795489721.1234
    return made


def test_a_text_line_has_time_level_logger_and_message() -> None:
    assert (
        TextFormatter().format(record("%d sessions", 3)) == "2026-11-24T03:08:41.123Z INFO    tracker.api  3 sessions"
    )


def test_a_json_line_has_the_same_and_nothing_else() -> None:
    assert json.loads(JsonFormatter().format(record("%d sessions", 3))) == {
        "time": "2026-11-24T03:08:41.123Z",
        "level": "info",
        "logger": "tracker.api",
        "message": "3 sessions",
    }


def test_fields_go_along_as_fields_of_json_only() -> None:
    made = record("%d sessions", 3)
    made.fields = {"requestId": "r", "status": 200}
    assert TextFormatter().format(made).endswith("  3 sessions")
    entry = json.loads(JsonFormatter().format(made))
    assert (entry["message"], entry["requestId"], entry["status"]) == ("3 sessions", "r", 200)


def test_a_record_of_several_lines_has_each_with_its_own_time_and_level() -> None:
    made = record("%d requests", 2)
    made.lines = [
        Line(1795489721.0, logging.DEBUG, "GET", "/a", 200, 0.0004, "r1"),
        Line(1795489722.9999, logging.INFO, "GET", "/b\n", 404, 1.5, "r2"),
    ]
    assert TextFormatter().format(made).split("\n") == [
        "2026-11-24T03:08:41.000Z DEBUG   tracker.api  GET /a 200 0.4 ms r1",
        "2026-11-24T03:08:42.999Z INFO    tracker.api  GET /b",
        "     404 1500.0 ms r2",
    ]
    first, second = map(json.loads, JsonFormatter().format(made).split("\n"))
    assert (first["time"], first["level"], first["route"]) == ("2026-11-24T03:08:41.000Z", "debug", "/a")
    assert (second["time"], second["level"], second["route"]) == ("2026-11-24T03:08:42.999Z", "info", "/b\n")
    assert second["durationMs"] == 1500


def test_an_exception_goes_along() -> None:
    text = TextFormatter().format(record("failed", failed=True))
    assert text.startswith(
        "2026-11-24T03:08:41.123Z INFO    tracker.api  failed\n    Traceback (most recent call last):\n"
    )
    assert text.endswith("\n    ValueError: bad\\x1b[31m")
    entry = json.loads(JsonFormatter().format(record("failed", failed=True)))
    assert entry["exception"].startswith("Traceback (most recent call last):\n")
    assert entry["exception"].endswith("\nValueError: bad\x1b[31m")


def test_a_stack_goes_along() -> None:
    made = record("here")
    made.stack_info = "Stack (most recent call last):\n  somewhere"
    assert TextFormatter().format(made).endswith("here\n    Stack (most recent call last):\n      somewhere")
    assert json.loads(JsonFormatter().format(made))["exception"] == made.stack_info


def test_no_message_can_pass_for_a_line_of_its_own_or_move_the_cursor() -> None:
    forged = "x\n2026-11-24T03:08:41.123Z ERROR   tracker.api  forged\r\x1b[2J\x00\x85"
    lines = TextFormatter().format(record("%s", forged)).split("\n")
    assert len(lines) == 2
    assert lines[1] == r"    2026-11-24T03:08:41.123Z ERROR   tracker.api  forged\x0d\x1b[2J\x00\x85"
    assert "\n" not in JsonFormatter().format(record("%s", forged))
    assert json.loads(JsonFormatter().format(record("%s", forged)))["message"] == forged


def test_lone_surrogates_and_emoji_are_no_trouble_for_json() -> None:
    assert JsonFormatter().format(record("\ud800 🤖")).isascii()


def test_what_uvicorn_logs_as_error_for_everything_is_called_uvicorn() -> None:
    assert " INFO    uvicorn  up" in TextFormatter().format(record("up", name="uvicorn.error"))


@pytest.fixture
def _loggers_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_loggers_restored")
@pytest.mark.parametrize(("log_format", "begins"), [("text", "2"), ("json", "{")])
def test_the_configuration_puts_every_logger_on_standard_error_from_the_level_on(
    log_format: str, begins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = log_config(Settings.load({}, log_level="warning", log_format=log_format))
    logging.config.dictConfig(pickle.loads(pickle.dumps(config)))
    for name in ("tracker.api", "uvicorn.error", "somebody.else"):
        logging.getLogger(name).info("not this")
        logging.getLogger(name).warning("but this")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 3
    assert all(line.startswith(begins) and "but this" in line for line in lines)
