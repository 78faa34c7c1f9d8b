"""What a route is: a method on a path, the handler, and all that its documentation needs to know."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import ASGIApp

__all__ = ["Handler", "Operation", "Operations"]

Handler = Callable[[Request], Awaitable[ASGIApp]]


@dataclass(frozen=True)
class Operation:
    """One row of the API. The handler's docstring is its summary and description.

    ``answers``: the types of its bodies by status, None for an answer without one. ``errors`` are the further statuses
    it may answer with, besides those that every route shares. What is not ``documented`` is no part of the interface.
    ``streams``: whether it has server-sent events as well.
    """

    method: str
    path: str
    handler: Handler
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: type[BaseModel] | None = None
    answers: Mapping[int, Any] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    tag: str = "sessions"
    media_type: str = "application/json"
    documented: bool = True
    streams: bool = False

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.handler) or "").partition("\n")[0].rstrip(".")

    @property
    def description(self) -> str:
        return (inspect.getdoc(self.handler) or "").partition("\n\n")[2]

    @property
    def secured(self) -> bool:
        return self.path.startswith("/api/")


class Operations(list[Operation]):
    """The rows in the order in which they are written down."""

    def add(self, method: str, path: str, **facts: Any) -> Callable[[Handler], Handler]:
        """Makes a row of the handler that it decorates."""

        def register(handler: Handler) -> Handler:
            self.append(Operation(method, path, handler, **facts))
            return handler

        return register
