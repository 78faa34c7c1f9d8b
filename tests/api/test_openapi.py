"""The OpenAPI document: valid, complete, and true to the operations, the models and the error table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from pydantic import TypeAdapter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from typing_extensions import TypedDict

from tests.api.conftest import Api, running
from tracker import models
from tracker.api.openapi import FAILURES, describe, failures
from tracker.api.operations import Operation
from tracker.api.requests import BodyTooLarge
from tracker.api.responses import ERRORS, Answer, NotFound
from tracker.api.routes import OPERATIONS
from tracker.api.routing import MethodNotAllowed, NoSuchPath
from tracker.errors import (
    Conflict,
    IdempotencyMismatch,
    Invalid,
    PositionLost,
    SchemaMismatch,
    StoreFault,
    StoreUnavailable,
    TooManyReaders,
)
from tracker.settings import Settings

DOCUMENT = describe(OPERATIONS)
DOCUMENTED = [operation for operation in OPERATIONS if operation.documented]
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]

Json = dict[str, Any]


def described(operation: Operation) -> Json:
    found: Json = DOCUMENT["paths"][operation.path][operation.method.lower()]
    return found


def nodes(node: Any, name: str = "") -> Iterator[tuple[str, Json]]:
    """Each object of the document with the name that it has in the one around it."""
    if isinstance(node, dict):
        yield name, node
        for key, value in node.items():
            if key not in ("example", "examples"):
                yield from nodes(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from nodes(value)


def resolved(node: Json) -> Json:
    if "$ref" not in node:
        return node
    found: Any = DOCUMENT
    for step in node["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    target: Json = found
    return target


def violations(schema: Json, value: Any) -> list[str]:
    whole = {**schema, "components": DOCUMENT["components"]}
    return [error.message for error in jsonschema_rs.Draft202012Validator(whole).iter_errors(value)]


def parameters(operation: Operation) -> list[Json]:
    return [resolved(parameter) for parameter in described(operation).get("parameters", [])]


operations = pytest.mark.parametrize(
    "operation", DOCUMENTED, ids=[f"{operation.method} {operation.path}" for operation in DOCUMENTED]
)


def test_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(DOCUMENT).validate()


def test_every_schema_is_valid_json_schema_2020_12() -> None:
    for name, schema in nodes(SCHEMAS):
        if name in SCHEMAS:
            jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]})
            assert jsonschema_rs.meta.is_valid({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_uses_no_keyword_that_json_schema_does_not_know() -> None:
    """A limit that pydantic cannot express would come out under a name that nobody reads."""
    known = {"type", "format", "enum", "const", "default", "description", "examples", "$ref", "pattern"}
    known |= {"minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties"}
    known |= {"properties", "required", "items", "additionalProperties", "propertyNames"}
    found = [
        (name, schema)
        for name, schema in nodes(DOCUMENT)
        if name in ("schema", "items", "additionalProperties", "propertyNames") or name in SCHEMAS
    ]
    found += [(name, schema) for _, owner in found for name, schema in owner.get("properties", {}).items()]
    assert found
    for name, schema in found:
        assert schema.keys() <= known, name


def test_has_exactly_the_operations_of_the_table() -> None:
    assert {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods} == {
        (operation.path, operation.method.lower()) for operation in DOCUMENTED
    }


def test_names_each_operation_and_each_schema_once() -> None:
    names = [described(operation)["operationId"] for operation in DOCUMENTED]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[A-Z][A-Za-z]+", name) for name in SCHEMAS), "no second name for input or output"


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    references = {node["$ref"] for _, node in nodes(DOCUMENT) if "$ref" in node}
    for reference in references:
        resolved({"$ref": reference})
    components = {
        f"#/components/{kind}/{name}"
        for kind, named in DOCUMENT["components"].items()
        for name in named
        if kind != "securitySchemes"
    }
    # A method that is not served belongs to no operation, but what it is answered is told all the same.
    assert components - references == {"#/components/responses/MethodNotAllowed"}


@operations
def test_each_operation_is_described(operation: Operation) -> None:
    told = described(operation)
    assert told["summary"]
    assert told["tags"] == [operation.tag]
    assert operation.tag in [tag["name"] for tag in DOCUMENT["tags"]]
    assert "\n\n" not in told["summary"]


def test_every_field_parameter_header_and_answer_is_described() -> None:
    for name, schema in nodes(SCHEMAS):
        if name in SCHEMAS:
            assert schema["description"], name
            for field, described_field in schema["properties"].items():
                assert described_field.get("description"), f"{name}.{field}"
    for operation in DOCUMENTED:
        assert all(parameter["description"] for parameter in parameters(operation))
        for answer in map(resolved, described(operation)["responses"].values()):
            assert answer["description"]
            assert all(header["description"] for header in answer.get("headers", {}).values())


@operations
def test_a_key_is_asked_for_under_api_and_nowhere_else(operation: Operation) -> None:
    under_api = operation.path.startswith("/api/")
    assert described(operation).get("security") == ([{"key": []}] if under_api else None)
    assert ("401" in described(operation)["responses"]) == under_api


def test_the_key_is_a_bearer_token() -> None:
    scheme = DOCUMENT["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert "security" not in DOCUMENT


@operations
def test_every_path_parameter_has_its_limits(operation: Operation) -> None:
    in_path = [parameter for parameter in parameters(operation) if parameter["in"] == "path"]
    assert [parameter["name"] for parameter in in_path] == re.findall(r"\{(\w+)\}", operation.path)
    for parameter in in_path:
        assert parameter["required"]
        assert parameter["schema"] == {"type": "string", "minLength": 1, "maxLength": 512}


@operations
def test_every_query_parameter_has_its_limits_and_may_be_empty(operation: Operation) -> None:
    in_query = {parameter["name"]: parameter for parameter in parameters(operation) if parameter["in"] == "query"}
    fields = operation.query.model_fields.values() if operation.query else ()
    assert list(in_query) == [field.alias for field in fields]
    for parameter in in_query.values():
        assert "required" not in parameter
        assert parameter["allowEmptyValue"]
        assert parameter["schema"].keys() & {"maxLength", "maximum", "enum", "pattern"}


def test_create_takes_as_idempotency_key_what_a_header_can_hold() -> None:
    [header] = DOCUMENT["paths"]["/api/active-sessions"]["post"]["parameters"]
    assert (header["name"], header["in"]) == ("Idempotency-Key", "header")
    for right in ("a key, 24 h", "a\tb", "é", "a" * 512):
        assert not violations(header["schema"], right), right
    for wrong in ("", " ", "a ", "a\n", "a\x00", "\u0100", "a" * 513):
        assert violations(header["schema"], wrong), wrong


@operations
def test_a_body_is_required_only_where_a_field_of_it_is(operation: Operation) -> None:
    body = described(operation).get("requestBody")
    assert (body is None) == (operation.body is None)
    if body and operation.body:
        [(media_type, content)] = body["content"].items()
        assert media_type == "application/json"
        assert body["required"] == ("required" in resolved(content["schema"]))


@operations
def test_null_means_absent_in_bodies_for_all_but_required_fields(operation: Operation) -> None:
    if operation.body:
        schema = SCHEMAS[operation.body.__name__]
        required = dict.fromkeys(schema.get("required", []), "x")
        nulls = {name: None for name in schema["properties"] if name not in required}
        assert not violations(schema, {**required, **nulls})
        operation.body.model_validate({**required, **nulls})
        for name in required:
            assert violations(schema, {**required, name: None})


@operations
def test_every_example_keeps_to_its_schema(operation: Operation) -> None:
    told = described(operation)
    bodies = [*told.get("requestBody", {}).get("content", {}).values()]
    for answer in map(resolved, told["responses"].values()):
        bodies += answer.get("content", {}).values()
        bodies += answer.get("headers", {}).values()
    for body in bodies:
        assert violations(body["schema"], body["example"]) == []
    for parameter in parameters(operation):
        if "example" in parameter:
            assert violations(parameter["schema"], parameter["example"]) == []
    if operation.body:
        operation.body.model_validate(told["requestBody"]["content"]["application/json"]["example"])


@operations
def test_every_answer_with_a_body_has_an_example(operation: Operation) -> None:
    for answer in map(resolved, described(operation)["responses"].values()):
        assert all("example" in content for content in answer.get("content", {}).values())


def test_the_session_has_all_its_fields_in_order_and_always() -> None:
    fields = list(models.Session.__annotations__)
    assert list(SCHEMAS["Session"]["properties"]) == fields
    assert SCHEMAS["Session"]["required"] == fields


def test_a_field_that_may_be_null_says_so() -> None:
    properties = SCHEMAS["Session"]["properties"]
    nullable = {name for name, schema in properties.items() if "null" in schema["type"]}
    assert nullable == {
        "taskId",
        "inboxMessageId",
        "taskDescription",
        "runnerSessionId",
        "providerSessionId",
        "runtimeInstanceId",
        "progress",
        "stopRequestedAt",
    }
    assert None in SCHEMAS["Event"]["properties"]["reason"]["enum"]


def test_an_object_that_may_be_null_says_so() -> None:
    class Page(TypedDict):
        last: models.Missing | None

    async def handler(request: Request) -> Response:
        raise NotImplementedError

    document = describe([Operation("GET", "/page", handler, answers={200: Page})])
    last = document["components"]["schemas"]["Page"]["properties"]["last"]
    assert last == {"anyOf": [{"$ref": "#/components/schemas/Missing"}, {"type": "null"}]}


def error_statuses() -> dict[type[Exception], int]:
    """What the error table makes of each error."""
    session: Any = {}
    samples: dict[type[Exception], Exception] = {
        Invalid: Invalid([]),
        NoSuchPath: NoSuchPath(),
        NotFound: NotFound(),
        MethodNotAllowed: MethodNotAllowed("GET"),
        Conflict: Conflict("", session),
        PositionLost: PositionLost(""),
        BodyTooLarge: BodyTooLarge(""),
        IdempotencyMismatch: IdempotencyMismatch(""),
        StoreFault: StoreFault(""),
        StoreUnavailable: StoreUnavailable(""),
        SchemaMismatch: SchemaMismatch(""),
        TooManyReaders: TooManyReaders(""),
        ClientDisconnect: ClientDisconnect(),
        Exception: Exception(),
    }
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": []})
    statuses = {}
    for kind, write in ERRORS.items():
        written = write(request, samples[kind])
        assert isinstance(written, Answer | Response)
        statuses[kind] = written.status_code
    return statuses


def test_tells_of_every_status_that_an_error_leads_to_and_of_no_other() -> None:
    """403 and 401 come from the authentication."""
    assert set(error_statuses().values()) | {401, 403} == FAILURES.keys()


def test_failures_have_the_body_that_the_error_table_writes() -> None:
    for status, failure in FAILURES.items():
        schema = resolved(DOCUMENT["components"]["responses"][failure.name]["content"]["application/json"]["schema"])
        assert schema == SCHEMAS[failure.body.__name__]
        assert "error" in schema["required"]
        assert TypeAdapter(failure.body).validate_python(failure.example), status


@operations
def test_each_operation_tells_of_the_failures_that_it_can_come_to(operation: Operation) -> None:
    told = {int(status) for status in described(operation)["responses"]}
    assert told == {*operation.answers, *failures(operation)}
    under_api = operation.path.startswith("/api/")
    assert (500 in told) == under_api, "only who asks the store can meet a fault in it"
    assert (503 in told) == (under_api or operation.path == "/ready")
    assert (403 in told) == (under_api and operation.method != "GET")
    assert (413 in told) == (operation.body is not None)
    assert 405 not in told, "an operation is served with its method"


@pytest.mark.parametrize(
    ("status", "header"),
    [(201, "Location"), (401, "WWW-Authenticate"), (405, "Allow"), (503, "Retry-After")],
)
def test_tells_of_the_headers_that_come_with_a_status(status: int, header: str) -> None:
    with_status = [
        resolved(answer)
        for operation in DOCUMENTED
        for code, answer in described(operation)["responses"].items()
        if int(code) == status
    ]
    if status in FAILURES:
        with_status.append(DOCUMENT["components"]["responses"][FAILURES[status].name])
    assert with_status
    assert all(list(answer["headers"]) == [header] for answer in with_status)


@pytest.mark.settings(api_keys="w-key")
@pytest.mark.parametrize("backend", ["memory"], indirect=True)
async def test_is_served_to_everybody_as_json(settings: Settings) -> None:
    async with running(settings) as api:
        answer = await api.client.get("/openapi.json")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == DOCUMENT


@pytest.mark.parametrize("backend", ["memory"], indirect=True)
async def test_an_unknown_path_and_a_wrong_method_are_answered_as_told(api: Api) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("PATCH", "/stats", 405)):
        answer = await api.call(method, path)
        told = DOCUMENT["components"]["responses"][FAILURES[status].name]
        assert answer.status_code == status
        assert violations(told["content"]["application/json"]["schema"], answer.json()) == []
        assert all(name in answer.headers for name in told.get("headers", {}))
