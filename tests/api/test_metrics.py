"""/metrics: what it counts, what it asks of the store, and what it never tells."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram

from tests.api.conftest import BASE, Api, running
from tests.clockwork import advance, outage
from tests.redis_server import running_redis
from tests.scrape import Scrape
from tracker.api.metrics import METHODS, SECONDS, Metrics
from tracker.api.routes import OPERATIONS
from tracker.errors import SchemaMismatch, StoreFault, StoreUnavailable
from tracker.settings import Settings

HEARTBEAT = BASE + "/heartbeat/{taskId}"
POSSIBLE_ID = "0199b1f2-6c1e-7000-8a55-0c3f3f8f2a10"


async def scrape(api: Api) -> Scrape:
    answer = await api.client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return Scrape(answer.text)


@pytest.mark.settings(api_keys=("w-key",))
async def test_it_is_text_for_prometheus_and_needs_no_key(api: Api) -> None:
    answer = await api.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE tracker_http_requests_total counter\n" in answer.text


async def test_requests_are_counted_by_route_method_and_status(api: Api) -> None:
    await api.create(taskId="t1")
    for task in ("t1", "t1", "t2"):
        await api.put(f"/heartbeat/{task}")
    await api.put("/heartbeat/t1", content=b"{")
    await api.get("/by-task/t2")
    await api.client.post("/health")
    seen = await scrape(api)
    for route, method, status, count in (
        (BASE, "POST", 201, 1),
        (HEARTBEAT, "PUT", 200, 3),
        (HEARTBEAT, "PUT", 400, 1),
        (BASE + "/by-task/{taskId}", "GET", 404, 1),
        ("/health", "POST", 405, 1),
    ):
        assert seen.value("tracker_http_requests_total", route=route, method=method, status=status) == count, route
    assert seen.value("tracker_http_request_duration_seconds_count", route=HEARTBEAT, method="PUT") == 4
    assert seen.value("tracker_http_request_duration_seconds_bucket", route=HEARTBEAT, le="+Inf") == 4
    assert seen.value("tracker_http_request_duration_seconds_sum", route=HEARTBEAT) > 0
    again = await scrape(api)
    assert again.value("tracker_http_requests_total", route="/metrics") == 1, "a scrape tells of those before it"
    assert again.value("tracker_http_requests_total", route=HEARTBEAT) == 4


def test_a_tally_makes_of_the_histogram_what_observing_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """For it reaches past what the library promises."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    plain = CollectorRegistry()
    histogram = Histogram(
        "tracker_http_request_duration_seconds", "", ["route", "method"], registry=plain, buckets=SECONDS
    )
    metrics = Metrics()
    for number in range(3):
        for seconds in (*SECONDS, 0.0, 1e-9, 11.0, 1e6, *(random.expovariate(1) for _ in range(50))):
            histogram.labels("/r", "GET").observe(seconds)
            metrics.answered("GET", "/r", 200 + number, seconds)
        metrics.flush()
    metrics.flush()
    for suffix in ("_sum", "_count", *(f"_bucket{bound}" for bound in SECONDS)):
        name, _, bound = suffix.partition("bucket")
        labels = {"route": "/r", "method": "GET", **({"le": str(float(bound))} if bound else {})}
        full = "tracker_http_request_duration_seconds" + (name + "bucket" if bound else name)
        expected = plain.get_sample_value(full, labels)
        assert expected
        assert metrics.registry.get_sample_value(full, labels) == pytest.approx(expected), suffix


async def test_heartbeats_are_counted_by_outcome(api: Api) -> None:
    """Alone, in batches and for ids that no session can have, which the store is not even asked about."""
    session = await api.create(taskId="t1")
    await api.put("/heartbeat/t1")
    await api.put(f"/{session['id']}/heartbeat")
    await api.put("/heartbeat/t2")
    await api.put("/no-id/heartbeat")
    await api.put(f"/{POSSIBLE_ID}/heartbeat")
    await api.put("/heartbeat/t1", json={"sessionId": POSSIBLE_ID})
    await api.put("/heartbeat", json={"taskIds": ["t1", "t3"], "sessionIds": ["no-id", session["id"]]})
    seen = await scrape(api)
    outcomes = ("renewed", "missing", "conflict")
    assert [seen.value("tracker_heartbeats_total", outcome=outcome) for outcome in outcomes] == [4, 5, 1]


async def test_the_first_scrape_has_each_outcome_and_kind_already(api: Api) -> None:
    """A rate needs a zero to rise from."""
    seen = await scrape(api)
    heartbeats = {labels["outcome"] for name, labels, _ in seen.samples() if name == "tracker_heartbeats_total"}
    errors = {labels["kind"] for name, labels, _ in seen.samples() if name == "tracker_store_errors_total"}
    assert heartbeats == {"renewed", "missing", "conflict"}
    assert errors == {"unavailable", "fault", "mismatch"}


@pytest.mark.parametrize("shards", [1, 4])
async def test_what_lives_and_what_ended_is_asked_of_the_store(api: Api) -> None:
    for agent, task in (("a1", "t1"), ("a1", "t2"), ("a2", "t3"), ("a3", "t4")):
        await api.create(agentId=agent, taskId=task, ttlSeconds=1000)
    short = [await api.create(agentId="a1", taskId=task, ttlSeconds=10) for task in ("t5", "t6")]
    await api.delete("/by-task/t1")
    await api.create(agentId="a1", taskId="t2", ttlSeconds=1000)
    await api.post("/cleanup", json={"agentId": "a3"})
    await advance(api.store, 60)
    seen = await scrape(api)
    assert seen.value("tracker_sessions") == 2
    assert seen.value("tracker_sessions_expired_unswept") == len(short)
    assert seen.value("tracker_agents") >= 2
    assert seen.value("tracker_sessions_created_total") == 7
    reasons = ("deleted", "expired", "replaced", "cleaned")
    assert [seen.value("tracker_sessions_ended_total", reason=reason) for reason in reasons] == [1, 0, 1, 1]
    before = seen.value("tracker_sweeps_total"), seen.value("tracker_sweep_ended_sessions_total")
    assert await api.store.sweeper.sweep() == 2
    seen = await scrape(api)
    assert seen.value("tracker_sessions_expired_unswept") == 0
    assert seen.value("tracker_sessions_ended_total", reason="expired") == 2
    assert seen.value("tracker_sweeps_total") == before[0] + len(api.store.scripts.shards)
    assert seen.value("tracker_sweep_ended_sessions_total") == before[1] + 2


@pytest.mark.parametrize("backend", ["redis"])
async def test_what_the_store_counts_outlives_the_server(settings: Settings) -> None:
    async with running(settings) as api:
        await api.create(taskId="t1")
        await api.delete("/by-task/t1")
    async with running(settings) as api:
        seen = await scrape(api)
    assert seen.value("tracker_sessions_created_total") == 1
    assert seen.value("tracker_sessions_ended_total", reason="deleted") == 1


async def test_it_tells_how_long_ago_the_last_sweep_was_and_of_a_hold(api: Api) -> None:
    seen = await scrape(api)
    assert 0 <= seen.value("tracker_sweep_lag_seconds") < 60
    assert (seen.value("tracker_hold_active"), seen.value("tracker_hold_remaining_seconds")) == (0, 0)
    await outage(api.store, 600)
    seen = await scrape(api)
    assert 600 <= seen.value("tracker_sweep_lag_seconds") < 660
    await api.store.sweeper.sweep()
    seen = await scrape(api)
    assert seen.value("tracker_sweep_lag_seconds") < 60
    assert seen.value("tracker_hold_active") == 1
    assert 500 < seen.value("tracker_hold_remaining_seconds") <= 660
    await advance(api.store, 700)
    assert (await scrape(api)).value("tracker_hold_active") == 0


async def test_each_operation_is_in_one_batch(api: Api, backend: str) -> None:
    for number in range(30):
        await api.create(taskId=f"t{number}")
    await asyncio.gather(*(api.put(f"/heartbeat/t{number}") for number in range(30)))
    seen = await scrape(api)
    assert seen.value("tracker_store_batch_operations_sum", call="heartbeat") == 30
    calls = seen.value("tracker_store_batch_operations_count", call="heartbeat")
    assert 1 <= calls < 30, "they went together"
    assert seen.value("tracker_store_call_duration_seconds_count", call="heartbeat") == calls
    assert seen.value("tracker_store_call_duration_seconds_count", call="create") == 30
    await api.get()
    await api.get("/events")
    seen = await scrape(api)
    for call in ("list", "hashes", "xrange", "stats", "enroll", "sweep"):
        assert seen.value("tracker_store_call_duration_seconds_count", call=call) >= 1, call


async def test_a_call_that_is_refused_is_an_error_of_the_store(api: Api) -> None:
    await api.create(taskId="t1")
    key = api.store.scripts.shards[0].prefix + "task:t1"
    await api.store.scripts.client.delete(key)
    await api.store.scripts.client.rpush(key, "planted")
    assert (await api.put("/heartbeat/t1")).status_code == 500
    seen = await scrape(api)
    assert seen.value("tracker_store_errors_total", kind="fault") == 1
    assert seen.value("tracker_store_errors_total", kind="unavailable") == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [(StoreFault("x"), "fault"), (StoreUnavailable("x"), "unavailable"), (SchemaMismatch("x"), "mismatch")],
)
def test_errors_are_counted_by_kind(error: StoreFault | StoreUnavailable | SchemaMismatch, kind: str) -> None:
    metrics = Metrics()
    metrics.landed("read", 0.1, 3, error)
    metrics.ran("list", 0.1, error)
    metrics.ran("list", 0.1, None)
    metrics.failed(error)
    assert metrics.registry.get_sample_value("tracker_store_errors_total", {"kind": kind}) == 3


async def test_no_id_and_nothing_else_that_clients_make_up_is_told(api: Api) -> None:
    made_up = "chosen-by-a-client"
    session = await api.create(
        agentId=made_up,
        triggerType=made_up,
        taskId=made_up,
        taskDescription=made_up,
        runnerSessionId=made_up,
        runtimeInstanceId=made_up,
        metadata={made_up: made_up},
    )
    for operation in OPERATIONS:
        if operation.method != "DELETE" and "events" not in operation.path:
            path = operation.path.replace("{taskId}", made_up).replace("{id}", session["id"])
            await api.client.request(operation.method, path, headers={"X-Request-ID": made_up}, json={})
    await api.get("?" + made_up)
    await api.client.get("/" + made_up)
    await api.call(made_up.upper(), "/" + made_up)
    text = (await scrape(api)).text.lower()
    assert made_up not in text
    assert session["id"] not in text


async def test_unknown_paths_and_methods_are_one_each(api: Api) -> None:
    async def wander(prefix: str) -> Scrape:
        for number in range(20):
            await api.client.get(f"/{prefix}{number}")
            await api.client.request(f"{prefix}{number}", "/health")
            await api.client.request(f"{prefix}{number}", f"/{prefix}{number}")
        return await scrape(api)

    first = await wander("x")
    second = await wander("y")
    count = second.value("tracker_http_requests_total", route="none", method="other", status=404)
    assert count == 2 * first.value("tracker_http_requests_total", route="none", method="other", status=404) == 40
    assert second.value("tracker_http_requests_total", route="/health", method="other", status=405) == 40
    names = [{(name, *labels.items()) for name, labels, _ in seen.samples()} for seen in (first, second)]
    assert {entry for entry in names[1] - names[0] if ("route", "/metrics") not in entry} == set()
    routes = {labels["route"] for name, labels, _ in second.samples() if name == "tracker_http_requests_total"}
    methods = {labels["method"] for name, labels, _ in second.samples() if name == "tracker_http_requests_total"}
    assert routes <= {operation.path for operation in OPERATIONS} | {"none"}
    assert methods <= METHODS | {"other"}


async def test_without_the_store_it_tells_so_and_what_it_knows(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        own = Settings(store_url=server.url, store_timeout_seconds=0.5, sweep_interval_seconds=60)
        async with running(own) as api:
            await api.create(taskId="t1")
            assert (await scrape(api)).value("tracker_store_up") == 1
            server.kill()
            assert (await api.put("/heartbeat/t1")).status_code == 503
            seen = await scrape(api)
            assert seen.has("tracker_store_up")
            assert seen.value("tracker_store_up") == 0
            assert not seen.has("tracker_sessions"), "no number is better than a stale one"
            assert seen.value("tracker_store_errors_total", kind="unavailable") >= 1
            assert seen.value("tracker_http_requests_total", route=HEARTBEAT, status=503) == 1
            assert seen.value("tracker_build_info") == 1
            assert seen.value("process_resident_memory_bytes") > 1e6


async def test_workers_that_are_gone_hold_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What they counted stays counted; gauges of what they held go with them."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics = Metrics()
    nobody = 2**22 + 1  # beyond the greatest process id there can be
    held, counted = tmp_path / f"gauge_livesum_{nobody}.db", tmp_path / f"counter_{nobody}.db"
    held.touch()
    counted.touch()
    assert metrics.workers() == []
    assert not held.exists()
    assert counted.exists()
