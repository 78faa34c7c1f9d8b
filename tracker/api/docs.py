"""The page at /docs: the OpenAPI document for people. No script, nothing from elsewhere: it works offline."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from http import HTTPStatus
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from tracker.api.openapi import FAILURES

__all__ = ["HEADERS", "render"]

STYLE = (files("tracker.api") / "static" / "docs.css").read_text("utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What the page is to be sent with."""

SERVER = "http://localhost:3013"

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} API {version}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header id="top">
<a class="name" href="#top">
<svg viewBox="0 0 32 32" aria-hidden="true"><path d="M2 17h6l3-8 5 16 4-11 2 3h8"/></svg>
{title}</a>
<a class="open" href="#menu">Menu</a>
</header>
<nav id="menu" aria-label="Contents">
<a class="close" href="#content">Close</a>
{navigation}
</nav>
<main id="content">
<section class="intro">
<p class="version">API {version} · OpenAPI {openapi} at <a href="/openapi.json">/openapi.json</a></p>
<h1>{summary}</h1>
{introduction}
</section>
{body}
</main>
</body>
</html>
"""

OPERATION = """<article id="{id}">
<div class="text">
<h3><a href="#{id}">{summary}</a></h3>
<p class="route"><span class="method {method}">{METHOD}</span> <code>{path}</code>{key}</p>
{description}
{parameters}
{answers}
{errors}
</div>
<div class="samples">
{samples}
</div>
</article>
"""


def render(document: Mapping[str, Any]) -> str:
    """The whole page."""
    info = document["info"]
    groups = {tag["name"]: (tag["description"], list(_operations(document, tag["name"]))) for tag in document["tags"]}
    return PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        openapi=escape(document["openapi"]),
        style=STYLE,
        summary=escape(info["summary"]),
        introduction=_prose(info["description"]),
        navigation=_navigation(document, groups),
        body="\n".join(
            [
                *(
                    f'<section class="group"><h2 id="{name}">{name.capitalize()}</h2>{_prose(description)}'
                    + "".join(_operation(document, *where) for where in operations)
                    + "</section>"
                    for name, (description, operations) in groups.items()
                ),
                _objects(document),
                _errors(document),
            ]
        ),
    )


def _operations(document: Mapping[str, Any], tag: str) -> Iterable[tuple[str, str, Any]]:
    """Each (path, method, operation) under a tag."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                yield path, method, operation


def _navigation(
    document: Mapping[str, Any], groups: Mapping[str, tuple[str, list[tuple[str, str, dict[str, Any]]]]]
) -> str:
    def listed(title: str, anchor: str, links: Iterable[str]) -> str:
        items = "".join(f"<li>{link}</li>" for link in links)
        return f'<h2><a href="#{anchor}">{title}</a></h2><ul>{items}</ul>'

    headings = re.findall(r"^## (.+)$", document["info"]["description"], re.MULTILINE)
    return "".join(
        [
            listed("Overview", "content", (f'<a href="#{_slug(text)}">{escape(text)}</a>' for text in headings)),
            *(
                listed(
                    name.capitalize(),
                    name,
                    (
                        f'<a href="#{operation["operationId"]}">{_spaced(operation["operationId"]).capitalize()}'
                        f'<span class="method {method}">{method.upper()}</span></a>'
                        for _, method, operation in operations
                    ),
                )
                for name, (_, operations) in groups.items()
            ),
            listed("Objects", "objects", (f'<a href="#object-{name}">{name}</a>' for name in _nested(document))),
            listed(
                "Errors",
                "errors",
                (f'<a href="#error-{status}">{_phrase(status)}</a>' for status in FAILURES),
            ),
        ]
    )


def _operation(document: Mapping[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    parameters = [_resolved(document, parameter) for parameter in operation.get("parameters", [])]
    body = operation.get("requestBody")
    answers = {status: answer for status, answer in operation["responses"].items() if "$ref" not in answer}
    errors = [int(status) for status in operation["responses"] if status not in answers]
    return OPERATION.format(
        id=operation["operationId"],
        summary=escape(operation["summary"]),
        method=method,
        METHOD=method.upper(),
        path=re.sub(r"\{(\w+)\}", r"<var>{\1}</var>", escape(path)),
        key="" if "security" in operation else ' <span class="open-to-all">no key needed</span>',
        description=_prose(operation.get("description", "")),
        parameters=_parameters(parameters) + _body(document, body),
        answers=_answers(document, answers),
        errors=_error_links(errors),
        samples=_panel("Request", _shell(_curl(path, method, operation, parameters))) + _samples(answers),
    )


def _parameters(parameters: list[dict[str, Any]]) -> str:
    places = {"path": "In the path", "query": "In the query string", "header": "In the header"}
    return "".join(
        f"<h4>{title}</h4>"
        + _rows(
            _field(parameter["name"], parameter, "required" if "required" in parameter else "")
            for parameter in parameters
            if parameter["in"] == place
        )
        for place, title in places.items()
        if any(parameter["in"] == place for parameter in parameters)
    )


def _body(document: Mapping[str, Any], body: Mapping[str, Any] | None) -> str:
    """No field has a word on null: it means absent, as the introduction says."""
    if body is None:
        return ""
    title = "Body" if body["required"] else "Body <em>optional</em>"
    schema = _resolved(document, body["content"]["application/json"]["schema"])
    required = schema.get("required", [])
    return f"<h4>{title}</h4>{_prose(schema.get('description', ''))}" + _rows(
        _field(name, {**field, "type": _types(field)[:1]}, "required" if name in required else "")
        for name, field in schema["properties"].items()
    )


def _answers(document: Mapping[str, Any], answers: Mapping[str, Any]) -> str:
    """Each answer; the fields of one that several statuses share are told once."""
    shown = []
    told: list[Any] = []
    for status, answer in answers.items():
        schema = _schema(answer)
        fields = [] if schema in told else _fields(_resolved(document, schema))
        told.append(schema)
        rows = _rows([*_headers(answer), *fields])
        phrase, meaning = _phrase(int(status)), answer["description"]
        shown.append(f"<h4>{phrase}</h4>{'' if meaning.rstrip('.') in phrase else _prose(meaning)}{rows}")
    return "".join(shown)


def _schema(answer: Mapping[str, Any]) -> dict[str, Any]:
    schemas: list[dict[str, Any]] = [content["schema"] for content in answer.get("content", {}).values()]
    return schemas[0] if schemas else {}


def _headers(answer: Mapping[str, Any]) -> list[str]:
    return [_field(name, header, "header") for name, header in answer.get("headers", {}).items()]


def _error_links(statuses: Iterable[int]) -> str:
    links = "".join(f'<li><a href="#error-{status}">{_phrase(status)}</a></li>' for status in statuses)
    return links and f'<h4>Errors</h4><ul class="errors">{links}</ul>'


def _objects(document: Mapping[str, Any]) -> str:
    schemas = document["components"]["schemas"]
    shown = "".join(
        f'<article id="object-{name}"><div class="text"><h3><a href="#object-{name}">{name}</a></h3>'
        f"{_prose(schemas[name].get('description', ''))}{_rows(_fields(schemas[name]))}</div></article>"
        for name in _nested(document)
    )
    return f'<section class="group"><h2 id="objects">Objects</h2>{shown}</section>'


def _errors(document: Mapping[str, Any]) -> str:
    shown = []
    for status, failure in FAILURES.items():
        response = document["components"]["responses"][failure.name]
        rows = _rows([*_headers(response), *_fields(_resolved(document, _schema(response)))])
        shown.append(
            f'<article id="error-{status}"><div class="text"><h3><a href="#error-{status}">{_phrase(status)}</a></h3>'
            f"{_prose(response['description'])}{rows}</div>"
            f'<div class="samples">{_samples({str(status): response})}</div></article>'
        )
    return f'<section class="group"><h2 id="errors">Errors</h2>{"".join(shown)}</section>'


def _nested(document: Mapping[str, Any]) -> list[str]:
    """The names of the schemas that others refer to."""
    inside = json.dumps(document["components"]["schemas"])
    return sorted(set(re.findall(r'"#/components/schemas/(\w+)"', inside)))


def _resolved(document: Mapping[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The node, or what it refers to."""
    if "$ref" not in node:
        return node
    found: Any = document
    for step in node["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    resolved: dict[str, Any] = found
    return resolved


# --- fields -----------------------------------------------------------------------------------------------------------


def _fields(schema: Mapping[str, Any]) -> list[str]:
    """A row for each field of an answer."""
    required = schema.get("required", [])
    return [
        _field(name, field, "" if name in required else "not always there")
        for name, field in schema.get("properties", {}).items()
    ]


def _rows(rows: Iterable[str]) -> str:
    joined = "".join(rows)
    return joined and f"<dl>{joined}</dl>"


def _field(name: str, field: Mapping[str, Any], mark: str) -> str:
    """A parameter, a header or a property: name, type, limits, default, ``mark`` and description."""
    schema = field.get("schema", field)
    facts = [_kind(schema), *_limits(schema)]
    if "default" in schema:
        facts.append(f"default <code>{escape(str(schema['default']))}</code>")
    marked = mark and f' <em class="{mark.partition(" ")[0]}">{mark}</em>'
    return (
        f'<div><dt><code>{escape(name)}</code> <span class="kind">{", ".join(facts)}</span>{marked}</dt>'
        f"<dd>{_prose(field.get('description', ''))}</dd></div>"
    )


def _types(schema: Mapping[str, Any]) -> list[str]:
    types = schema.get("type", "anything")
    return types if isinstance(types, list) else [types]


def _kind(schema: Mapping[str, Any]) -> str:
    """The type, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#object-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    types = _types(schema)
    kind = {"date-time": "time", "uuid": "UUID"}.get(schema.get("format", ""), types[0])
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        kind = " | ".join(f"<code>{escape(value)}</code>" for value in values if value is not None)
    elif kind == "array":
        items = _kind(schema["items"])
        kind = f"list of {items}{'s' if items.isalpha() else ''}"
    elif isinstance(schema.get("additionalProperties"), dict):
        kind = f"object of {_kind(schema['additionalProperties'])}s"
    return f"{kind} or null" if "null" in types[1:] else kind


def _limits(schema: Mapping[str, Any]) -> Iterable[str]:
    """Each limit, in words."""
    yield from _range(schema, "minLength", "maxLength", "characters")
    yield from _range(schema, "minimum", "maximum", "")
    yield from _range(schema, "minItems", "maxItems", "entries")
    if "items" in schema:
        yield from (f"each {limit}" for limit in _limits(schema["items"]))
    yield from _range(schema, "minProperties", "maxProperties", "entries")
    if "propertyNames" in schema:
        yield from (f"names {limit}" for limit in _limits(schema["propertyNames"]))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from (f"values {limit}" for limit in _limits(schema["additionalProperties"]))
    if "pattern" in schema:
        yield f'like <code class="pattern">{escape(schema["pattern"])}</code>'


def _range(schema: Mapping[str, Any], low: str, high: str, unit: str) -> Iterable[str]:
    least, most = schema.get(low), schema.get(high)
    if most is not None:
        span = f"up to {most:,}" if least is None else f"{least:,} to {most:,}"
        yield f"{span} {unit}".rstrip()
    elif least is not None:
        yield f"{least:,} or more {unit}".rstrip()


# --- samples ----------------------------------------------------------------------------------------------------------


def _curl(path: str, method: str, operation: Mapping[str, Any], parameters: Iterable[Mapping[str, Any]]) -> str:
    """A command that calls the operation with its examples."""
    words = ["-H", '"Authorization: Bearer $API_KEY"'] if "security" in operation else []
    verb = "" if method == "get" else f"-X {method.upper()} "
    for parameter in parameters:
        name, value = parameter["name"], parameter.get("example")
        if value is None:
            continue
        if parameter["in"] == "path":
            path = path.replace(f"{{{name}}}", quote(value, safe=""))
        elif parameter["in"] == "query":
            verb = "-G "
            words += ["-d", f"{name}={value}"]
        else:
            words += ["-H", f'"{name}: {value}"']
    if "requestBody" in operation:
        example = operation["requestBody"]["content"]["application/json"]["example"]
        words += ["-d", shlex.quote(json.dumps(example, indent=2, ensure_ascii=False))]
    options = [f"{option} {value}" for option, value in zip(words[::2], words[1::2], strict=True)]
    return " \\\n  ".join([f"curl {verb}{SERVER}{path}", *options])


def _samples(answers: Mapping[str, Any]) -> str:
    """A panel for each example, with all the statuses that have it."""
    titles: dict[str, list[str]] = {}
    for status, answer in answers.items():
        for media_type, content in answer.get("content", {}).items():
            example = content["example"]
            shown = _json(example) if media_type == "application/json" else escape(example)
            titles.setdefault(shown, []).append(_phrase(int(status)))
    return "".join(_panel(", ".join(phrases), shown) for shown, phrases in titles.items())


def _panel(title: str, code: str) -> str:
    # Long lines scroll, so the keyboard must get there.
    return f'<figure><figcaption>{title}</figcaption><pre tabindex="0"><code>{code}</code></pre></figure>'


def _json(value: Any) -> str:
    """JSON with a span around each name, string, number and word."""
    text = escape(json.dumps(value, indent=2, ensure_ascii=False), quote=False)
    return re.sub(
        r'("(?:[^"\\]|\\.)*")(:?)|(?<![\w"-])(-?\d[\d.eE+-]*|true|false|null)(?![\w"])',
        lambda found: (
            f'<i class="{"n" if found[2] else "s"}">{found[1]}</i>{found[2]}'
            if found[1]
            else f'<i class="v">{found[3]}</i>'
        ),
        text,
    )


def _shell(command: str) -> str:
    """A command with its options set apart."""
    return re.sub(r"(^|\s)(curl|-[A-Za-z])(?=\s)", r'\1<i class="n">\2</i>', escape(command, quote=False))


# --- prose ------------------------------------------------------------------------------------------------------------


def _prose(text: str) -> str:
    """Light markdown: paragraphs, ``## headings``, `code` and *stress*."""
    return "".join(_paragraph(part) for part in re.split(r"\n\s*\n", text.strip()) if part)


def _paragraph(text: str) -> str:
    if text.startswith("## "):
        return f'<h2 id="{_slug(text[3:])}">{escape(text[3:])}</h2>'
    marked = re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(text, quote=False))
    return "<p>" + re.sub(r"\*(\w[^*]*)\*", r"<em>\1</em>", marked) + "</p>"


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower())


def _phrase(status: int) -> str:
    """The status by number and name: of errors our own, for Python renames some from version to version."""
    if status in FAILURES:
        return f"{status} {_spaced(FAILURES[status].name)}"
    return f"{status} {HTTPStatus(status).phrase}"


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
