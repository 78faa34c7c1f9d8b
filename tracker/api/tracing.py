"""Tracing: requests and calls to the store as spans of OpenTelemetry. Imported only where somebody wants traces.

Installed with ``pip install tracker[otel]`` and configured by the standard variables: OTEL_EXPORTER_OTLP_ENDPOINT and
its kin (OTLP over HTTP), OTEL_TRACES_EXPORTER, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
OTEL_PROPAGATORS, OTEL_BSP_*. No span holds a key, a path or anything else that a client made up.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tracker import __version__
from tracker.api.metrics import METHODS
from tracker.errors import StoreError

__all__ = ["Tracing"]

LAST_SPANS_SECONDS = 3
"""How long the last spans may take to go out when the server stops: less than it has for that itself."""
PROTOCOL = "http/protobuf"
EXPORTERS: Mapping[str, type[SpanExporter]] = {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}


class Tracing:
    """Makes spans with a provider, which it shuts down in the end."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("tracker", __version__)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Tracing:
        """As the OTEL_* variables have it, most of which the SDK reads itself. Raises ValueError for what cannot be."""
        for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            if environ.get(variable, PROTOCOL) != PROTOCOL:
                raise ValueError(f"{variable} must be {PROTOCOL}, not {environ[variable]!r}")
        resource = Resource.create()
        if "OTEL_SERVICE_NAME" not in environ and "service.name" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
            resource = resource.merge(Resource({SERVICE_NAME: "tracker"}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for name in (environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(","):
            if name.strip() not in EXPORTERS:
                raise ValueError(f"OTEL_TRACES_EXPORTER must be otlp, console or none, not {name.strip()!r}")
            provider.add_span_processor(BatchSpanProcessor(EXPORTERS[name.strip()]()))
        return cls(provider)

    def around(self, app: ASGIApp) -> ASGIApp:
        """ASGI middleware: a span for each request below /api, in the caller's trace if it has one."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if not scope["path"].startswith("/api/"):
                await app(scope, receive, send)
                return
            method = scope["method"] if scope["method"] in METHODS else "_OTHER"
            carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            with self._tracer.start_as_current_span(
                method,
                propagate.extract(carrier),
                SpanKind.SERVER,
                {"http.request.method": method, "url.scheme": scope.get("scheme", "http")},
                record_exception=False,  # its text may hold what a client sent
                set_status_on_exception=False,
            ) as span:

                def noted(message: Message) -> Awaitable[None]:
                    if message["type"] == "http.response.start":
                        _describe(span, method, scope.get("route"), message["status"])
                    return send(message)

                await app(scope, receive, noted)

        return traced

    @contextmanager
    def store_span(self, call: str) -> Iterator[None]:
        """A span for what a request waits for in the store. What the server does for itself goes untraced."""
        if not trace.get_current_span().is_recording():
            yield
            return
        with self._tracer.start_as_current_span(
            f"store {call}",
            kind=SpanKind.CLIENT,
            attributes={"db.system.name": "redis", "db.operation.name": call},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except StoreError as error:
                span.set_status(Status(StatusCode.ERROR))
                span.set_attribute("error.type", type(error).__name__)
                raise

    async def close(self) -> None:
        """Sends the last spans, as far as that can be done soon."""
        # A thread that no exit waits for: without a collector the exporter tries for half a minute.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, LAST_SPANS_SECONDS)


def _describe(span: Span, method: str, route: str | None, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if route is not None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
        span.set_attribute("error.type", str(status))
