"""From a request's path to its handler, by looking segments up instead of trying one pattern after the other.

The path is split while it is still percent-encoded, so that ``%2F`` in an id is part of the id. A literal segment goes
before a parameter: ``/heartbeat/{taskId}`` is never taken for ``/{id}/heartbeat``. Matching is exact: no redirects, no
case folding, no empty segments for parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tracker.api.operations import Handler, Operation
from tracker.errors import Invalid
from tracker.models import ID_LENGTH

__all__ = ["MethodNotAllowed", "NoSuchPath", "RouteTree"]


class NoSuchPath(Exception):
    """Nothing is served there."""


class MethodNotAllowed(Exception):
    """The path is served, but not with that method; ``allow`` names the ones that are."""

    def __init__(self, allow: str) -> None:
        self.allow = allow
        super().__init__(allow)


class _Node:
    __slots__ = ("handlers", "literals", "name", "parameter", "template")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.name = ""
        self.template = ""
        self.handlers: dict[str, Handler] = {}

    def find(self, segments: list[str], at: int, found: list[tuple[str, str]]) -> _Node | None:
        """The node that serves the segments from ``at`` on; adds (name, segment) of each parameter to ``found``."""
        if at == len(segments):
            return self if self.handlers else None
        segment = segments[at]
        if (literal := self.literals.get(segment)) and (node := literal.find(segments, at + 1, found)):
            return node
        if self.parameter is not None and segment and (node := self.parameter.find(segments, at + 1, found)):
            found.append((self.parameter.name, segment))
            return node
        return None


class RouteTree:
    """ASGI application that serves all operations. Path parameters, decoded, are in ``request.path_params``."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._root = _Node()
        for operation in operations:
            node = self._root
            for segment in operation.path.split("/"):
                if segment.startswith("{"):
                    if node.parameter is None:
                        node.parameter = _Node()
                    node = node.parameter
                    node.name = segment.strip("{}")
                else:
                    node = node.literals.setdefault(segment, _Node())
            node.template = operation.path
            node.handlers[operation.method] = operation.handler
            if operation.method == "GET":
                node.handlers["HEAD"] = operation.handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        found: list[tuple[str, str]] = []
        node = self._root.find(raw.decode("latin-1").split("/"), 0, found)
        if node is None:
            raise NoSuchPath
        scope["route"] = node.template
        handler = node.handlers.get(scope["method"])
        if handler is None:
            raise MethodNotAllowed(", ".join(sorted(node.handlers)))
        scope["path_params"] = {name: _decoded(name, segment) for name, segment in found}
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)


def _decoded(name: str, segment: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise Invalid([{"field": name, "message": "Not valid UTF-8"}]) from None
    if len(text) > ID_LENGTH:
        raise Invalid([{"field": name, "message": f"String should have at most {ID_LENGTH} characters"}])
    return text
