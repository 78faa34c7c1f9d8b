"""Traces: requests and store calls as spans, in the caller's trace; and nothing at all where nobody asks for them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import tests.api.conftest as harness
from tests.api.conftest import BASE, Api, running
from tracker.api import app
from tracker.api.tracing import LAST_SPANS_SECONDS, Tracing
from tracker.settings import Settings

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Traced(NamedTuple):
    api: Api
    exporter: InMemorySpanExporter

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(name)]


@pytest.fixture
async def traced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Traced]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(harness, "create_app", lambda settings: app.create_app(settings, Tracing(provider)))
    async with running(settings) as api:
        yield Traced(api, exporter)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_request_is_a_span_with_a_span_for_its_store_call(traced: Traced) -> None:
    await traced.api.create(taskId="t1")
    await traced.api.put("/heartbeat/t1")
    (request,) = traced.spans(f"PUT {BASE}/heartbeat/{{taskId}}")
    assert request.kind is SpanKind.SERVER
    assert request.parent is None
    assert attributes(request) == {
        "http.request.method": "PUT",
        "http.route": BASE + "/heartbeat/{taskId}",
        "http.response.status_code": 200,
        "url.scheme": "http",
    }
    (call,) = traced.spans("store heartbeat")
    assert call.kind is SpanKind.CLIENT
    assert call.parent == request.context
    assert attributes(call) == {"db.system.name": "redis", "db.operation.name": "heartbeat"}


async def test_requests_that_share_a_batch_have_a_store_span_each(traced: Traced) -> None:
    await asyncio.gather(*(traced.api.put(f"/heartbeat/t{number}") for number in range(20)))
    requests = {span.context.span_id for span in traced.spans("PUT ") if span.context}
    assert len(requests) == 20
    assert {span.parent.span_id for span in traced.spans("store heartbeat") if span.parent} == requests
    assert len(traced.spans("store heartbeat")) == 20


async def test_calls_made_in_tasks_of_a_request_belong_to_it(traced: Traced) -> None:
    """A listing reads ahead; a batch of heartbeats is one wait."""
    await traced.api.create(taskId="t1")
    await traced.api.put("/heartbeat", json={"taskIds": ["t1", "t2"]})
    traced.exporter.clear()
    await traced.api.get()
    await traced.api.put("/heartbeat", json={"taskIds": ["t1", "t2"]})
    (listing,), (batch,) = traced.spans(f"GET {BASE}"), traced.spans("PUT ")
    assert {span.name for span in traced.spans("store") if span.parent == listing.context} == {
        "store list",
        "store hashes",
    }
    assert [span.name for span in traced.spans("store") if span.parent == batch.context] == ["store heartbeat"]
    assert len(traced.spans()) == 5


async def test_the_callers_trace_is_taken_over(traced: Traced) -> None:
    await traced.api.get("/stats", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    (request,) = traced.spans("GET ")
    assert request.parent is not None
    assert (f"{request.parent.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert request.parent.is_remote
    assert {f"{span.context.trace_id:032x}" for span in traced.spans("store") if span.context} == {TRACE}


async def test_a_caller_that_does_not_sample_is_heeded(traced: Traced) -> None:
    await traced.api.get("/stats", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert traced.spans() == []


@pytest.mark.parametrize("header", ["", "x", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "ü" * 55])
async def test_nonsense_begins_a_trace_of_its_own(traced: Traced, header: str) -> None:
    answer = await traced.api.get("/stats", headers=[(b"traceparent", header.encode())])
    assert answer.status_code == 200
    (request,) = traced.spans("GET ")
    assert request.parent is None


async def test_errors_are_told_by_status(traced: Traced) -> None:
    await traced.api.get("/by-task/t1")
    await traced.api.get("/nowhere/x")
    key = traced.api.store.scripts.shards[0].prefix + "task:t1"
    await traced.api.store.scripts.client.rpush(key, "planted")
    assert (await traced.api.put("/heartbeat/t1")).status_code == 500
    lost, nowhere = traced.spans("GET ")[0], traced.spans("GET")[1]
    assert (attributes(lost)["http.response.status_code"], lost.status.status_code) == (404, StatusCode.UNSET)
    assert (nowhere.name, attributes(nowhere)["http.response.status_code"]) == ("GET", 404)
    assert "http.route" not in attributes(nowhere)
    (failed,) = traced.spans("PUT ")
    assert failed.status.status_code is StatusCode.ERROR
    assert attributes(failed)["error.type"] == "500"


@pytest.mark.settings(api_keys=("humble-key",))
async def test_no_span_holds_a_key_an_id_or_what_else_a_client_made_up(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> None:
        raise RuntimeError("humble")

    headers = {"Authorization": "Bearer humble-key", "X-Request-ID": "humble"}
    body = {"agentId": "humble", "triggerType": "humble", "taskId": "humble", "taskDescription": "humble"}
    made = await traced.api.post("?x=humble", json=body, headers=headers)
    await traced.api.put("/heartbeat/humble", headers=headers)
    await traced.api.call("HUMBLE", "/humble", headers=headers)
    monkeypatch.setattr(traced.api.store.sessions, "get", failing)
    with pytest.raises(RuntimeError):
        await traced.api.get(f"/{made.json()['session']['id']}", headers=headers)
    told = "".join(str(span.to_json()) for span in traced.spans())
    assert len(traced.spans(f"GET {BASE}/{{id}}")) == 1
    assert "humble" not in told.lower()
    assert made.json()["session"]["id"] not in told


async def test_probes_scrapes_and_what_the_server_does_for_itself_go_untraced(traced: Traced) -> None:
    for path in ("/health", "/ready", "/metrics", "/docs"):
        await traced.api.client.get(path)
    await traced.api.store.sweeper.sweep()
    assert traced.spans() == []


# --- as the environment has it ----------------------------------------------------------------------------------------


@pytest.fixture
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def imported(before: str = "pass", **environ: str) -> set[str]:
    """What a process has imported after it made the application."""
    code = (
        f"import sys; {before}; from tracker.api.app import from_environment; from_environment(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_nothing_is_imported_unless_traces_are_asked_for(environ: dict[str, str]) -> None:
    """By us: redis-py has a look at OpenTelemetry's metrics wherever it is installed."""
    assert not {"tracker.api.tracing", "opentelemetry.sdk.trace.export", "opentelemetry.exporter"} & imported(**environ)


def test_it_is_when_they_are() -> None:
    modules = imported(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert {"tracker.api.tracing", "opentelemetry.sdk.trace.export", "opentelemetry.exporter"} <= modules


def test_nothing_of_it_need_be_installed() -> None:
    """Whether traces are asked for or not."""
    absent = "sys.modules['opentelemetry'] = None"
    for environ in ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}):
        modules = imported(absent, **environ)
        assert "tracker.api.app" in modules
        assert not [name for name in modules if name.startswith("opentelemetry.")]


@pytest.mark.usefixtures("_no_variables")
@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "no traces: OTEL_TRACES_EXPORTER must be otlp, console or none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "no traces: OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf"),
    ],
)
async def test_what_cannot_be_is_a_warning(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    value: str,
    says: str,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(variable, value)
    async with running(settings) as api:
        assert (await api.get()).status_code == 200
    assert says in caplog.text


@pytest.mark.parametrize("backend", ["memory"])
async def test_traces_asked_for_but_not_installed_are_a_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "tracker.api.tracing", None)
    async with running(settings) as api:
        assert (await api.get()).status_code == 200
    assert "pip install 'tracker[otel]'" in caplog.text


class Collector(ThreadingHTTPServer):
    """Takes spans as a collector would; or never answers."""

    def __init__(self, *, silent: bool = False) -> None:
        self.received: list[ExportTraceServiceRequest] = []
        self.ending = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if silent:
                    collector.ending.wait(60)
                    return
                assert self.path == "/v1/traces"
                collector.received.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def silent() -> bool:
    return False


@pytest.fixture
def collector(silent: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector(silent=silent) as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector
        collector.ending.set()
        collector.shutdown()
        thread.join()


@pytest.mark.usefixtures("_no_variables")
@pytest.mark.parametrize("backend", ["memory"])
async def test_spans_go_to_a_collector_at_the_latest_when_the_server_stops(
    settings: Settings, collector: Collector
) -> None:
    async with running(settings) as api:
        await api.put("/heartbeat/t1")
    (sent,) = collector.received
    (resource,) = sent.resource_spans
    named = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert named["service.name"] == "tracker"
    names = {span.name for scope in resource.scope_spans for span in scope.spans}
    assert names == {f"PUT {BASE}/heartbeat/{{taskId}}", "store heartbeat"}


@pytest.mark.usefixtures("_no_variables")
@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.parametrize("silent", [True])
async def test_a_collector_that_is_stuck_does_not_keep_the_server_from_stopping(
    settings: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LAST_SPANS_SECONDS < 8, "the server has no longer"
    monkeypatch.setattr("tracker.api.tracing.LAST_SPANS_SECONDS", 0.1)
    async with running(settings) as api:
        await api.put("/heartbeat/t1")
        begin = time.monotonic()
    assert time.monotonic() - begin < 8
