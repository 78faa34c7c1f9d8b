"""What the documentation says is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from tracker.cli.main import app
from tracker.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_has_the_table_of_all_settings() -> None:
    rows = [
        "| `{}` | {} | {} | {} |".format(
            row.variable,
            f"`{row.option}`" if row.option else "",
            " ".join(filter(None, (row.default, row.unit))),
            row.help,
        )
        for row in Settings.table()
    ]
    assert "\n".join(rows) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_tracker_variable_that_a_page_names_is_a_setting(page: Path) -> None:
    known = {row.variable for row in Settings.table()}
    clients = {"TRACKER_URL", "TRACKER_API_KEY"}
    assert set(re.findall(r"\bTRACKER_[A-Z_]+\b", page.read_text())) <= known | clients


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"(?:`|/)tracker ([a-z][a-z-]+)", page.read_text()))
    assert named <= commands


def test_the_reference_of_the_commands_has_every_command_with_every_option() -> None:
    rows = re.findall(r"^\| `tracker ([a-z-]+)[^`]*` \|(.*)$", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert [name for name, _ in rows] == list(commands)
    for name, row in rows:
        options = {option for parameter in commands[name].params for option in parameter.opts if option[:2] == "--"}
        documented = set(re.findall(r"--[a-z-]+", row)) - {"--no-stop"}
        assert documented == (set() if name == "serve" else options - {"--help"}), name


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE):
        assert f"\n{target}:" in makefile, target
