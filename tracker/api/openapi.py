"""The OpenAPI 3.1 document, made of the operations and the models: what is told there is not told here again."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter
from pydantic.alias_generators import to_camel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from tracker import __version__, models
from tracker.api.examples import ANSWERS, PATH, SESSION, STREAM
from tracker.api.operations import Operation
from tracker.models import ID_LENGTH, ConflictAnswer, Error, ValidationFailure

__all__ = ["FAILURES", "describe", "failures"]

DESCRIPTION = """
Every run of a task by an agent is a *session*. The run registers it when it starts, keeps it alive with heartbeats and
deletes it when it ends. A run that falls silent for longer than its `ttlSeconds` counts as dead: its session leaves the
list, and an event tells of it. A task has at most one live session at any time.

## Authentication

Everything under `/api` needs the header `Authorization: Bearer <key>`, unless the server was started without keys,
which it allows on a loopback address only. A key of scope `read` may only read; one that would change something is
answered 403.

## Requests

Bodies are read as JSON whatever their `Content-Type` says, an empty one as `{}`. `null` means absent, and so does an
empty value in a query string. Unknown fields are ignored; a field of the wrong type is refused, never converted. A body
may have 64 KiB, unless the operator set another limit.

Any text is an id: percent-encode it in paths, and everything comes back exactly as it was sent. A path that names a
route itself, such as `/stats`, is never taken for an id.

## Answers

JSON in UTF-8, times in RFC 3339, UTC, with milliseconds. `HEAD` is answered wherever `GET` is. Every error is an object
with `error`, one sentence for people.
"""

TAGS = {
    "sessions": "The runs: register, keep alive, end, list and count them.",
    "events": "The change feed: what began, changed and ended, in order.",
    "operations": "For those who run the server, and for those who read about it. No key is needed.",
}

PATH_PARAMETERS = {
    "id": "The session's id, as the server made it.",
    "taskId": "The task, percent-encoded.",
}

HEADERS: Mapping[int, tuple[str, str, JsonSchemaValue, str | int]] = {
    201: ("Location", "The path of the new session.", {"type": "string"}, f"/api/active-sessions/{PATH['id']}"),
    401: ("WWW-Authenticate", "How to authenticate.", {"type": "string"}, "Bearer"),
    405: ("Allow", "The methods that are allowed.", {"type": "string"}, "DELETE, GET, HEAD"),
    503: ("Retry-After", "Seconds to wait before trying again.", {"type": "integer", "minimum": 0}, 1),
}
"""The header that comes with a status: name, meaning, schema, example."""


class Failure(NamedTuple):
    """What a status that is no success means, everywhere alike. ``name`` is that of the component."""

    name: str
    meaning: str
    body: Any
    example: Any


FAILURES: Mapping[int, Failure] = {
    400: Failure(
        "BadRequest",
        "The request breaks a rule: malformed JSON, or a field or parameter that is missing, too long or of the wrong "
        "type.",
        ValidationFailure,
        {
            "error": "Validation error: triggerType: Field required",
            "details": [{"field": "triggerType", "message": "Field required"}],
        },
    ),
    401: Failure("Unauthorized", "The key is missing, malformed or unknown.", Error, {"error": "Unauthorized"}),
    403: Failure("Forbidden", "The key may only read.", Error, {"error": "This API key may only read"}),
    404: Failure("NotFound", "No such session, or no such path.", Error, {"error": "No such session"}),
    405: Failure(
        "MethodNotAllowed",
        "The path is served, but not with that method.",
        Error,
        {"error": "Method not allowed: use DELETE, GET, HEAD"},
    ),
    409: Failure(
        "Conflict",
        "Another session is the task's live one; it is in the answer.",
        ConflictAnswer,
        {"error": "The task has a live session of another agent", "session": SESSION},
    ),
    410: Failure(
        "Gone",
        "The feed no longer holds that position: list the sessions anew, then go on from `0`.",
        Error,
        {"error": "The feed no longer holds this position: list the sessions anew, then go on from 0"},
    ),
    413: Failure(
        "ContentTooLarge", "The body is too large.", Error, {"error": "The body may have 65536 bytes at most"}
    ),
    422: Failure(
        "UnprocessableContent",
        "The `Idempotency-Key` came with another body before.",
        Error,
        {"error": "This Idempotency-Key was used with another body"},
    ),
    500: Failure(
        "InternalServerError",
        "The store holds what the tracker did not write; the server's log says more.",
        Error,
        {"error": "The store holds something that the tracker did not write: see the log"},
    ),
    503: Failure(
        "ServiceUnavailable",
        "The store cannot answer in time, or too many read the feed. Trying again helps.",
        Error,
        {"error": "The store cannot answer now, try again"},
    ),
}


def describe(operations: Iterable[Operation]) -> dict[str, Any]:
    """The document. All schemas, failures and path parameters are components, each written once."""
    operations = [operation for operation in operations if operation.documented]
    references, schemas = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tracker",
            "summary": "Who is running what, and who died.",
            "description": DESCRIPTION.strip(),
            "license": {"name": "MIT", "identifier": "MIT"},
            "version": __version__,
        },
        "servers": [{"url": "/", "description": "This server."}],
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, of scope `write` (everything) or `read` (GET only).",
                }
            },
            "parameters": {name: _path_parameter(name) for name in PATH_PARAMETERS},
            "responses": {
                failure.name: _response(status, failure.meaning, references[failure.body], failure.example)
                for status, failure in FAILURES.items()
            },
            "schemas": schemas,
        },
    }


def failures(operation: Operation) -> list[int]:
    """The statuses, besides its answers, that the operation may answer with."""
    statuses = set(operation.errors)
    if operation.body or operation.query or operation.headers or "{" in operation.path:
        statuses.add(400)
    if operation.body:
        statuses.add(413)
    if operation.secured:  # and all of these ask the store
        statuses |= {401, 500, 503}
        if operation.method != "GET":
            statuses.add(403)
    return sorted(statuses)


class _Schemas(GenerateJsonSchema):
    """Without titles that repeat a name and defaults that say absent, in our order, null as one more type."""

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        if made.get("default", ...) is None:
            del made["default"]
        return made

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        made = self.generate_inner(schema["schema"])
        if "type" not in made:
            return {"anyOf": [made, {"type": "null"}]}
        made["type"] = [made["type"], "null"]
        if "enum" in made:
            made["enum"] = [*made["enum"], None]
        return made


def _schemas(operations: Iterable[Operation]) -> tuple[dict[Any, JsonSchemaValue], dict[str, JsonSchemaValue]]:
    """The schema of each body by its type, mostly a reference, and the components that these refer to."""
    modes: dict[Any, JsonSchemaMode] = {failure.body: "serialization" for failure in FAILURES.values()}
    for operation in operations:
        modes |= {body: "serialization" for body in operation.answers.values() if body is not None}
        if operation.body:
            modes[operation.body] = "validation"
    made, definitions = TypeAdapter.json_schemas(
        [(body, mode, TypeAdapter(body)) for body, mode in modes.items()],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Schemas,
    )
    components: dict[str, JsonSchemaValue] = definitions["$defs"]
    for schema in components.values():
        schema.pop("title", None)
    return {body: schema for (body, _), schema in made.items()}, dict(sorted(components.items()))


def _operation(operation: Operation, references: Mapping[Any, JsonSchemaValue]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "operationId": to_camel(operation.handler.__name__),
        "summary": operation.summary,
    }
    if operation.description:
        described["description"] = operation.description
    parameters = [
        {"$ref": f"#/components/parameters/{segment[1:-1]}"}
        for segment in operation.path.split("/")
        if segment.startswith("{")
    ]
    parameters += _parameters(operation.query, "query") + _parameters(operation.headers, "header")
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        described["requestBody"] = _request_body(operation.body, references[operation.body])
    described["responses"] = {str(status): _answer(operation, status, references) for status in operation.answers} | {
        str(status): {"$ref": f"#/components/responses/{FAILURES[status].name}"} for status in failures(operation)
    }
    if operation.secured:
        described["security"] = [{"key": []}]
    return described


def _path_parameter(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": PATH_PARAMETERS[name],
        "schema": {"type": "string", "minLength": 1, "maxLength": ID_LENGTH},
        "example": PATH[name],
    }


def _parameters(model: type[BaseModel] | None, place: str) -> list[dict[str, Any]]:
    """Each field of the model as a parameter. In a URL or a header there is no null."""
    if model is None:
        return []
    parameters = []
    for name, schema in model.model_json_schema(schema_generator=_Schemas)["properties"].items():
        schema["type"] = schema["type"][0]
        if "enum" in schema:
            schema["enum"].remove(None)
        parameter = {"name": name, "in": place, "description": schema.pop("description"), "schema": schema}
        if place == "query":
            parameter["allowEmptyValue"] = True
        if "examples" in schema:
            parameter["example"] = schema.pop("examples")[0]
        parameters.append(parameter)
    return parameters


def _request_body(model: type[BaseModel], reference: JsonSchemaValue) -> dict[str, Any]:
    example = model.model_json_schema(schema_generator=_Schemas)["examples"][0]
    content = {"schema": reference, "example": example}
    required = any(field.is_required() for field in model.model_fields.values())
    return {"required": required, "content": {"application/json": content}}


def _response(
    status: int,
    meaning: str,
    schema: JsonSchemaValue | None,
    example: Any = None,
    media_type: str = "application/json",
) -> dict[str, Any]:
    response: dict[str, Any] = {"description": meaning}
    if status in HEADERS:
        name, purpose, header, value = HEADERS[status]
        response["headers"] = {name: {"description": purpose, "required": True, "schema": header, "example": value}}
    if schema is not None:
        response["content"] = {media_type: {"schema": schema} | ({} if example is None else {"example": example})}
    return response


def _answer(operation: Operation, status: int, references: Mapping[Any, JsonSchemaValue]) -> dict[str, Any]:
    """Its meaning is the docstring of our own types, and the status's phrase for others."""
    body = operation.answers[status]
    own = getattr(body, "__module__", "") == models.__name__
    meaning = (own and inspect.getdoc(body)) or f"{HTTPStatus(status).phrase}."
    example = ANSWERS.get((body, status), ANSWERS.get(body))
    response = _response(status, meaning, references.get(body), example, operation.media_type)
    if operation.streams:
        response["content"]["text/event-stream"] = {"schema": {"type": "string"}, "example": STREAM}
    return response
