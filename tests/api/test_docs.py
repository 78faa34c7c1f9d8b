"""The page at /docs: tells all that the OpenAPI document does, needs nothing from elsewhere, and its examples work."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.api.conftest import Api, running
from tracker.api import docs
from tracker.api.openapi import FAILURES, describe
from tracker.api.routes import OPERATIONS
from tracker.settings import Settings

DOCUMENT = describe(OPERATIONS)

VOID = {"meta", "path"}
INLINE = {"a", "b", "code", "em", "i", "span", "var"}


class Page(HTMLParser):
    """What the tests want to know of a page; reading it asserts that every element is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag not in INLINE:
            self.text += "\n"

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.elements if name in attributes]


HTML = docs.render(DOCUMENT)
PAGE = Page(HTML)


def article(anchor: str) -> str:
    """The text of one entry."""
    found = re.search(rf'<article id="{anchor}">.*?</article>', HTML, re.DOTALL)
    assert found, anchor
    return Page(found[0]).text


def command(operation_id: str) -> list[str]:
    """The words of an operation's curl example, as a shell would read them."""
    _, _, samples = HTML.partition(f'<article id="{operation_id}">')[2].partition("<figcaption>Request</figcaption>")
    return shlex.split(Page(samples[: samples.index("</figure>")]).text.replace("\\\n", ""))


operations = pytest.mark.parametrize(
    ("path", "method", "operation"),
    [(path, method, told) for path, methods in DOCUMENT["paths"].items() for method, told in methods.items()],
    ids=lambda value: value if isinstance(value, str) else "",
)


@operations
def test_tells_of_each_operation(path: str, method: str, operation: dict[str, Any]) -> None:
    text = article(operation["operationId"])
    assert f"{method.upper()} {path}" in text
    assert operation["summary"] in text
    for parameter in operation.get("parameters", []):
        name = parameter["name"] if "name" in parameter else parameter["$ref"].rpartition("/")[2]
        assert f"{name} string" in text or f"{name} integer" in text or f"{name} session.created" in text
    if "requestBody" in operation:
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for field, schema in DOCUMENT["components"]["schemas"][name]["properties"].items():
            assert re.search(rf"^{field} [a-z |]+", text, re.MULTILINE), field
            assert schema["description"].replace("`", "") in text
    for status in operation["responses"]:
        assert re.search(rf"^{status} [A-Z]", text, re.MULTILINE), status


def test_tells_of_every_field_of_every_answer() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for field in schema["properties"]:
            assert re.search(rf"^{field} ", PAGE.text, re.MULTILINE), f"{name}.{field}"


@pytest.mark.parametrize("status", FAILURES)
def test_tells_of_each_error_with_an_example(status: int) -> None:
    text = article(f"error-{status}")
    assert FAILURES[status].meaning.replace("`", "") in text
    assert json.dumps(FAILURES[status].example["error"]) in text


def test_tells_limits_defaults_and_what_is_required() -> None:
    create = article("createSession")
    for fact in (
        "agentId string, 1 to 512 characters required",
        "taskId string, 1 to 512 characters",
        "taskDescription string, up to 16,384 characters",
        "ttlSeconds number, 1 to 86,400",
        "metadata object of strings, up to 32 entries, names 1 to 64 characters, values up to 512 characters",
        "onConflict supersede | reject | replace | reuse, default supersede",
        "Location string header",
    ):
        assert fact in create
    assert "taskIds list of strings, up to 1,000 entries, each 1 to 512 characters" in article("heartbeatMany")
    assert "maxAgeMinutes integer, 0 or more" in article("cleanup")
    assert "limit integer, 1 to 1,000, default 100" in article("listEvents")
    assert "nextCursor string or null not always there" in article("listSessions")
    assert "stopRequestedAt time or null" in article("object-Session")


def test_every_link_leads_somewhere_on_this_server() -> None:
    ids = PAGE.attributes("id")
    assert len(set(ids)) == len(ids)
    for link in PAGE.attributes("href"):
        assert link == "/openapi.json" or link.removeprefix("#") in ids, link


def test_the_navigation_leads_to_every_operation_object_and_error() -> None:
    navigation = Page(re.findall(r"<nav.*?</nav>", HTML, re.DOTALL)[0])
    links = set(navigation.attributes("href"))
    entries = re.findall(r'<article id="([^"]+)"', HTML)
    assert len(entries) > len(OPERATIONS) + len(FAILURES)
    assert {f"#{entry}" for entry in entries} <= links


def test_needs_nothing_from_elsewhere() -> None:
    assert {tag for tag, _ in PAGE.elements} & {"script", "link", "img", "iframe", "object", "form", "base"} == set()
    assert not {"src", "srcset", "style", "action", "data"} & {
        name for _, attributes in PAGE.elements for name in attributes
    }
    assert not re.search(r"url\(|@import|@font-face", HTML)
    assert set(re.findall(r"\w+://[^/\s<&]+", HTML)) == {"http://localhost:3013"}


async def test_forbids_all_but_its_own_style(api: Api) -> None:
    answer = await api.client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == HTML
    [style] = re.findall(r"<style>(.*?)</style>", HTML, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_text_is_never_taken_for_markup() -> None:
    """Whatever stands in names, descriptions, limits and examples, the page has no more elements than it should."""
    hostile = "<script>alert('x')</script>\"'&`<b>`"

    def poisoned(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            return {name: poisoned(value, name) for name, value in node.items()}
        if isinstance(node, list):
            return [poisoned(value, key) for value in node]
        plain = key in ("summary", "description", "pattern", "error", "taskDescription", "title", "version")
        return hostile if isinstance(node, str) and plain else node

    document = poisoned(copy.deepcopy(DOCUMENT))
    page = Page(docs.render(document))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in PAGE.elements}
    assert "<script>alert('x')</script>" in page.text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "minLength": 3}, ["string", "3 or more characters"]),
        ({"type": ["number", "null"], "maximum": 1000}, ["number or null", "up to 1,000"]),
        ({"type": "string", "format": "date-time"}, ["time"]),
        ({"const": "ok", "type": "string"}, ["<code>ok</code>"]),
        ({"enum": ["a", "b", None], "type": ["string", "null"]}, ["<code>a</code> | <code>b</code> or null"]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, ["list of integers", "1 or more entries"]),
        ({"type": "object", "additionalProperties": True}, ["object"]),
        ({"$ref": "#/components/schemas/Session"}, ['<a href="#object-Session">Session</a>']),
        (
            {"anyOf": [{"$ref": "#/components/schemas/Session"}, {"type": "null"}]},
            ['<a href="#object-Session">Session</a> or null'],
        ),
        ({}, ["anything"]),
    ],
    ids=str,
)
def test_a_type_and_its_limits_are_told_in_words(schema: dict[str, Any], words: list[str]) -> None:
    assert [docs._kind(schema), *docs._limits(schema)] == words


def test_prose_is_light_markdown() -> None:
    assert docs._prose("## A <title>\n\nOne `<b>` and *two*,\nthree * four * five.") == (
        '<h2 id="a-title-">A &lt;title&gt;</h2>'
        "<p>One <code>&lt;b&gt;</code> and <em>two</em>,\nthree * four * five.</p>"
    )


def test_colours_json_without_changing_it() -> None:
    value = {"a": ['say "hi"', "<b>\\", -1.5e3, True, None, "é: 1"], "null": "1", "b": 0}
    coloured = docs._json(value)
    assert json.loads(unescape(re.sub(r"</?i[^>]*>", "", coloured))) == value
    assert re.findall(r'<i class="v">([^<]+)</i>', coloured) == ["-1500.0", "true", "null", "0"]
    assert re.findall(r'<i class="n">([^<]+)</i>', coloured) == ['"a"', '"null"', '"b"']


@pytest.mark.settings(api_keys="w-key")
@pytest.mark.parametrize("backend", ["memory"], indirect=True)
async def test_every_curl_example_works(settings: Settings) -> None:
    """Called in order, with the key that they ask for, the examples are answered as told, and never as a mistake."""
    async with running(settings) as api:
        for path, methods in DOCUMENT["paths"].items():
            for method, operation in methods.items():
                status = await run(api, command(operation["operationId"]))
                assert str(status) in operation["responses"], f"{method} {path}"
                assert status < 400 or status == 404, f"{method} {path}"


async def run(api: Api, words: list[str]) -> int:
    """The status that curl would get for a command."""
    assert words.pop(0) == "curl"
    method, headers, data = "GET", {}, []
    as_query = "-G" in words
    while words[0].startswith("-"):
        option = words.pop(0)
        if option == "-X":
            method = words.pop(0)
    url = urlsplit(words.pop(0))
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "-H":
            name, _, text = value.partition(": ")
            headers[name] = text.replace("$API_KEY", "w-key")
        else:
            assert option == "-d"
            data.append(value)
    target = url.path + ("?" + "&".join(data) if as_query else "")
    answer = await api.client.request(method, target, headers=headers, content=None if as_query else "".join(data))
    return answer.status_code
