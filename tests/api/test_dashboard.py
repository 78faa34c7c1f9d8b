"""The dashboard's files: all there, sent under a strict policy, needing nothing from elsewhere, showing text only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

from tests.api.conftest import Api
from tracker.api.dashboard import FILES, HEADERS, MEDIA_TYPES, PAGE

SCRIPTS = [name for name in FILES if name.endswith(".js")]


def text(name: str) -> str:
    return FILES[name].content.decode()


def referred(name: str) -> Iterator[str]:
    """The files that one names: in imports, `src` and `href`."""
    yield from re.findall(r'(?:from|import) "\./([^"]+)"', text(name))
    yield from re.findall(r'(?:src|href)="/dashboard/([^"]+)"', text(name))


async def test_the_front_page_is_the_dashboard_and_asks_for_no_key(api: Api) -> None:
    answer = await api.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == PAGE.content
    for name, value in HEADERS.items():
        assert answer.headers[name] == value


@pytest.mark.parametrize("name", FILES)
async def test_each_file_is_served_as_what_it_is(api: Api, name: str) -> None:
    answer = await api.client.get(f"/dashboard/{name}")
    assert answer.status_code == 200
    assert answer.content == FILES[name].content
    assert answer.headers["content-type"].startswith(MEDIA_TYPES[PurePosixPath(name).suffix])
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "..%2Fauth.py", "%2E%2E%2Fauth.py", "index.html%00", ""])
async def test_nothing_else_is_served(api: Api, name: str) -> None:
    answer = await api.client.get(f"/dashboard/{name}")
    assert answer.status_code == 404
    assert answer.json() == {"error": "Not found"}


def test_every_file_is_used_and_every_file_named_is_there() -> None:
    reached, waiting = set[str](), ["index.html"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += referred(name)
    assert reached == set(FILES)


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    directives = dict(part.strip().partition(" ")[::2] for part in HEADERS["Content-Security-Policy"].split(";"))
    assert directives["default-src"] == "'none'"
    for name, sources in directives.items():
        assert sources in ("'none'", "'self'", "'script'"), name


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host(name: str) -> None:
    addresses = set(re.findall(r"(?:https?:)?//[a-z0-9][a-z0-9.-]*\.[a-z]{2,}", text(name)))
    assert addresses <= {"http://www.w3.org"}, "the name space of shapes is no address"


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_makes_markup_or_code_of_a_text(name: str) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc|setHTML|DOMParser"
    assert not re.search(forbidden, text(name))


def test_the_page_has_no_script_or_style_in_it() -> None:
    page = text("index.html")
    assert not re.search(r"<style|style=|\son[a-z]+=|javascript:", page)
    assert re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL) == [""]


def test_the_key_never_becomes_part_of_an_address_or_outlives_the_tab() -> None:
    everything = "".join(map(text, SCRIPTS))
    assert "localStorage" not in everything
    assert "document.cookie" not in everything
    assert len(re.findall(r"sessionStorage", everything)) == 3
    assert len(re.findall(r"Bearer \$\{key\}", everything)) == 1
