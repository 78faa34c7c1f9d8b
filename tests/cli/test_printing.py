"""What commands print: safe on a terminal whatever a session holds, and plain where a program reads it."""

from __future__ import annotations

import io
import sys

import pytest

from tests.store.wire import ODD_TEXTS
from tracker.cli.printing import duration, left_style, print_lines, printable


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    shown = printable(text + "\x1b]0;title\x07\x9b31m\u202e")
    assert shown.isprintable() or not any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in shown)
    assert "\u202e" not in shown


def test_what_is_hidden_is_shown_by_its_number() -> None:
    assert printable("a\x1b[31mb\nc\td\u202e") == "a\\x1b[31mb\\nc\\td\\u202e"
    assert printable(None) == ""


def test_a_text_never_makes_a_field_or_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines([("a\tb", "c\nd", None)])
    assert capsys.readouterr().out == "a\\tb\tc\\nd\t\n"


def test_lines_do_not_wait_for_more_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(pipe)))
    print_lines([("a", "b"), ("c", "d")])
    assert pipe.getvalue() == b"a\tb\nc\td\n"


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (-5, "0 s"),
        (999, "0 s"),
        (42_000, "42 s"),
        (187_000, "3 m 07 s"),
        (8_100_000, "2 h 15 m"),
        (349_200_000, "4 d 1 h"),
    ],
)
def test_durations_are_told_in_two_units(ms: float, words: str) -> None:
    assert duration(ms) == words


@pytest.mark.parametrize(("left", "style"), [(0.5, "green"), (0.3, "yellow"), (0.05, "red"), (-1, "red")])
def test_the_time_left_changes_its_colour(left: float, style: str) -> None:
    session = {"expiresAt": "1970-01-01T00:01:40.000Z", "ttlSeconds": 10}
    assert left_style(session, 100_000 - left * 10_000) == style  # type: ignore[arg-type]
