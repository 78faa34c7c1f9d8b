"""`tracker hash-key`: the line it makes is one that the server takes."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner, Result

from tracker.api.auth import parse_keys
from tracker.cli.main import app
from tracker.settings import ApiKey, digest_of


def hash_key(*arguments: str, typed: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["hash-key", *arguments], input=typed)


@pytest.mark.parametrize("typed", ["s3cret", "s3cret\n", "s3cret\r\n"])
def test_the_key_on_standard_input_becomes_a_line_of_the_key_file(typed: str) -> None:
    result = hash_key("ci", "--scope", "read", typed=typed)
    assert result.exit_code == 0
    assert parse_keys(result.stdout) == (ApiKey("ci", "read", digest_of("s3cret")),)
    assert result.stderr == ""
    assert "s3cret" not in result.output


def test_without_a_name_it_gets_one_and_may_write() -> None:
    (key,) = parse_keys(hash_key(typed="s3cret").stdout)
    assert key == ApiKey(f"key-{digest_of('s3cret').hex()[:8]}", "write", digest_of("s3cret"))


def test_a_generated_key_is_shown_once_on_standard_error_and_fits_the_line() -> None:
    results = [hash_key("ci", "--generate") for _ in range(2)]
    keys = [re.fullmatch(r"The new key, shown only this once: ([\w-]{43})\n", result.stderr) for result in results]
    assert keys[0]
    assert keys[1]
    assert keys[0][1] != keys[1][1]
    assert parse_keys(results[0].stdout) == (ApiKey("ci", "write", digest_of(keys[0][1])),)
    assert keys[0][1] not in results[0].stdout


@pytest.mark.parametrize(
    "typed", ["", "\n", "two words", "a\nb", "schlüssel", "a\x00", "\ttab", "k" * 4097, b"\xff\xfe"]
)
def test_what_cannot_be_a_key_is_refused_in_one_line_without_showing_it(typed: str | bytes) -> None:
    result = hash_key("ci", typed=typed)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "hash-key: the key must be 1 to 4096 visible ASCII characters, without spaces\n"


@pytest.mark.parametrize("name", ["", "a b", "a#b", "n" * 65, "a\nb"])
def test_a_name_that_the_file_could_not_hold_is_refused(name: str) -> None:
    result = hash_key(name, "--generate")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "hash-key: the name must be 1 to 64 of the characters A-Z a-z 0-9 . _ -\n"


def test_an_unknown_scope_is_refused() -> None:
    assert hash_key("ci", "--scope", "admin", typed="x").exit_code == 2


def test_on_a_terminal_the_key_is_asked_for_without_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def prompt(text: str, **options: object) -> str:
        asked.update(options)
        return "s3cret"

    monkeypatch.setattr("tracker.cli.hash_key._on_terminal", lambda: True)
    monkeypatch.setattr("typer.prompt", prompt)
    result = hash_key("ci")
    assert parse_keys(result.stdout) == (ApiKey("ci", "write", digest_of("s3cret")),)
    assert asked == {"hide_input": True, "err": True}


def test_it_works_in_a_pipe() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tracker", "hash-key", "ci"],
        input=b"s3cret\n",
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert parse_keys(done.stdout.decode()) == (ApiKey("ci", "write", digest_of("s3cret")),)
    assert done.stderr == b""
