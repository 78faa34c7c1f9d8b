"""Metrics: the numbers at /metrics, in the text format of Prometheus. docs/metrics.md has the table of them.

What happens in a process is counted there; with several, in files that all of them read (PROMETHEUS_MULTIPROC_DIR,
which ``tracker serve`` sets before this module is imported), so that whichever worker is asked tells of all. What the
store knows is asked of it once per scrape.

No label holds what clients make up: routes are templates, and what fits none is ``none``.
"""

from __future__ import annotations

import asyncio
import os
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from tracker import __version__
from tracker.errors import SchemaMismatch, StoreError, StoreFault
from tracker.store.keys import SCHEMA_VERSION
from tracker.store.observer import Observer, Slip
from tracker.store.stats import Gauges
from tracker.store.store import Store

__all__ = ["CONTENT_TYPE", "METHODS", "NO_ROUTE", "Exposition", "Metrics"]

Exposition = Annotated[str, "the text format of Prometheus"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""Others are counted as one."""
NO_ROUTE = "none"
"""The route of what reached none: an unknown path, or refused before."""
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
FLUSH_SECONDS = 1.0
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class _Tally:
    """Answers of one kind since the last flush. An update of a metric costs up to ten times as much as one of these."""

    __slots__ = ("buckets", "durations", "requests", "seconds")

    def __init__(self, requests: Counter, durations: Histogram) -> None:
        self.requests = requests
        self.durations = durations
        self.buckets = [0] * (len(SECONDS) + 1)
        self.seconds = 0.0

    def flush(self) -> None:
        count = sum(self.buckets)
        if not count:
            return
        self.requests.inc(count)
        # What ``observe`` does, for many at once. Not part of the library's promise: a test compares the two.
        self.durations._sum.inc(self.seconds)
        for bucket, more in zip(self.durations._buckets, self.buckets, strict=True):
            if more:
                bucket.inc(more)
        self.buckets = [0] * len(self.buckets)
        self.seconds = 0.0


class _Call(NamedTuple):
    durations: Histogram
    sizes: Histogram


class Metrics(Observer):
    """Counts requests, and, told by the store, what goes on there.

    A heartbeat costs one update of a tally, and shares all others with its batch. Tallies become metrics with each
    scrape, and with several workers once a second as well, so that the others' scrapes have them.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # as many series again, which nobody asks for
        self._directory = os.environ.get(DIRECTORY)
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "tracker_http_requests", "Requests answered, by route template, method and status.", "route method status"
        )
        self._durations = self._histogram(
            "tracker_http_request_duration_seconds",
            "Time until the answer to a request begins, by route template and method.",
            SECONDS,
            "route method",
        )
        heartbeats = self._counter(
            "tracker_heartbeats", "Heartbeats by outcome: renewed, missing (no such live session), conflict.", "outcome"
        )
        self._renewed, self._missing, self._conflicts = map(heartbeats.labels, ("renewed", "missing", "conflict"))
        self._call_durations = self._histogram(
            "tracker_store_call_duration_seconds", "Time that calls to the store take, by call.", SECONDS, "call"
        )
        self._call_sizes = self._histogram(
            "tracker_store_batch_operations", "Operations that go to the store in one call, by call.", SIZES, "call"
        )
        errors = self._counter(
            "tracker_store_errors",
            "Calls and operations that failed: unavailable (worth a retry), fault (somebody must look), mismatch "
            "(laid out for other settings).",
            "kind",
        )
        self._unavailable, self._faults, self._mismatches = map(errors.labels, ("unavailable", "fault", "mismatch"))
        self._sweeps = self._counter("tracker_sweeps", "Shards swept by this pod.")
        self._swept = self._counter("tracker_sweep_ended_sessions", "Expired sessions ended by this pod's sweeps.")
        deliveries = self._counter(
            "tracker_webhook_deliveries",
            "Attempts to tell the receiver of an event: told, later (to be tried again), parked (given up).",
            "outcome",
        )
        self._deliveries = {outcome: deliveries.labels(outcome) for outcome in ("told", "later", "parked")}
        self._readers = Gauge(
            "tracker_feed_readers",
            "Readers of the change feed: streams, and pages that wait.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        slips = self._counter(
            "tracker_feed_slips",
            "Readers of the change feed whose place was gone (reset), who fell behind and caught up by pages (lagged), "
            "who were too many (refused).",
            "how",
        )
        self._slips = {how: slips.labels(how) for how in ("reset", "lagged", "refused")}
        self._tallies: dict[tuple[str, str, int], _Tally] = {}
        self._flushing: asyncio.TimerHandle | None = None
        self._calls: dict[str, _Call] = {}

    # --- what happens ---------------------------------------------------------------------------------------------

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answer begins, so long after the request came. ``method`` may be any; ``route`` is a template."""
        tally = self._tallies.get((route, method, status)) or self._tally(route, method, status)
        tally.buckets[bisect_left(SECONDS, seconds)] += 1
        tally.seconds += seconds
        if self._flushing is None and self._directory is not None:
            self._flushing = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def delivered(self, outcome: Literal["told", "later", "parked"]) -> None:
        """An attempt to tell a webhook's receiver came to that."""
        self._deliveries[outcome].inc()

    def landed(self, call: str, seconds: float, size: int, outcome: list[list[Any]] | StoreError) -> None:
        known = self._calls.get(call)
        if known is None:
            known = self._calls[call] = _Call(self._call_durations.labels(call), self._call_sizes.labels(call))
        known.durations.observe(seconds)
        known.sizes.observe(size)
        if isinstance(outcome, StoreError):
            self.failed(outcome)
        elif call == "heartbeat":
            statuses = [reply[0] for reply in outcome]
            renewed = statuses.count(b"renewed")
            self._renewed.inc(renewed)
            if renewed < size:
                self._missing.inc(statuses.count(b"missing"))
                self._conflicts.inc(statuses.count(b"conflict"))

    def ran(self, call: str, seconds: float, error: StoreError | None) -> None:
        self._call_durations.labels(call).observe(seconds)
        if error is not None:
            self.failed(error)

    def failed(self, error: StoreError) -> None:
        match error:
            case StoreFault():
                self._faults.inc()
            case SchemaMismatch():
                self._mismatches.inc()
            case _:
                self._unavailable.inc()

    def missed(self, call: str) -> None:
        if call == "heartbeat":
            self._missing.inc()

    def swept(self, ended: int) -> None:
        self._sweeps.inc()
        self._swept.inc(ended)

    def followed(self, readers: int) -> None:
        self._readers.set(readers)

    def slipped(self, how: Slip) -> None:
        self._slips[how].inc()

    def flush(self) -> None:
        """Makes metrics of the tallies. To be called at the end as well: what a worker counted outlives it."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        for tally in self._tallies.values():
            tally.flush()

    def _tally(self, route: str, method: str, status: int) -> _Tally:
        method = method if method in METHODS else "other"
        tally = self._tallies.get((route, method, status))
        if tally is None:
            tally = self._tallies[route, method, status] = _Tally(
                self._requests.labels(route, method, str(status)), self._durations.labels(route, method)
            )
        return tally

    # --- what is told of it ---------------------------------------------------------------------------------------

    async def scrape(self, store: Store) -> bytes:
        """All of it as text. Waits for the store as long as any call may; without it, tells what it knows."""
        try:
            gauges = await store.gauges()
        except StoreError:
            gauges = None
        self.flush()
        # In a thread, or heartbeats would wait for some thousand lines.
        return await asyncio.to_thread(self._write, gauges)

    def _write(self, gauges: Gauges | None) -> bytes:
        scrape = CollectorRegistry()
        if self._directory is None:
            scrape.register(self.registry)
        else:
            MultiProcessCollector(scrape, self._directory)  # type: ignore[no-untyped-call]
        scrape.register(_Families(lambda: _families(gauges)))
        scrape.register(_Families(lambda: _process_families(self.workers())))
        return generate_latest(scrape)

    def workers(self) -> list[str]:
        """Ids of the processes that count and live. Others' counts stay, but nothing is left of what they held."""
        if self._directory is None:
            return [str(os.getpid())]
        living = []
        for process in {path.stem.rpartition("_")[2] for path in Path(self._directory).glob("*.db")}:
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                mark_process_dead(int(process), self._directory)  # type: ignore[no-untyped-call]
            else:
                living.append(process)
        return living

    def _counter(self, name: str, text: str, labels: str = "") -> Counter:
        return Counter(name, text, labels.split(), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], labels: str) -> Histogram:
        return Histogram(name, text, labels.split(), buckets=tuple(buckets), registry=self.registry)


class _Families(Collector):
    """What is made up when it is asked for."""

    def __init__(self, make: Callable[[], Iterable[Metric]]) -> None:
        self._make = make

    def collect(self) -> Iterable[Metric]:
        return self._make()


def _families(gauges: Gauges | None) -> Iterator[Metric]:
    build = {"version": __version__, "python": platform.python_version(), "schema": str(SCHEMA_VERSION)}
    yield _gauge("tracker_build_info", "What is running: always 1.", 1, build)
    yield _gauge("tracker_store_up", "Whether the store answered this scrape.", gauges is not None)
    if gauges is None:
        return
    yield _gauge("tracker_sessions", "Live sessions.", gauges.live)
    yield _gauge("tracker_sessions_expired_unswept", "Expired sessions that no sweep has ended yet.", gauges.expired)
    yield _gauge("tracker_agents", "Agents that have sessions; with several shards, once in each.", gauges.agents)
    yield CounterMetricFamily("tracker_sessions_created", "Sessions ever created.", gauges.created)
    ended = CounterMetricFamily("tracker_sessions_ended", "Sessions ever ended, by reason.", labels=["reason"])
    for reason, count in gauges.ended.items():
        ended.add_metric([reason], count)
    yield ended
    if gauges.sweep_lag is not None:
        yield _gauge("tracker_sweep_lag_seconds", "Time since the last sweep, by any pod.", gauges.sweep_lag)
    yield _gauge("tracker_hold_active", "Whether no session expires for now, after an outage.", gauges.hold > 0)
    yield _gauge("tracker_hold_remaining_seconds", "For how much longer no session expires.", gauges.hold)


def _gauge(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=list(labels or {}))
    gauge.add_metric(list((labels or {}).values()), value)
    return gauge


def _process_families(processes: Iterable[str]) -> Iterator[Metric]:
    """The processes as if they were one: sums, and the start of the first."""
    families: dict[str, Metric] = {}
    for process in processes:
        for family in ProcessCollector(pid=lambda process=process: process, registry=None).collect():  # type: ignore[misc]
            if family.name not in families:
                families[family.name] = family
                continue
            mine, other = families[family.name].samples[0], family.samples[0]
            merge = min if family.name.endswith("_start_time_seconds") else sum
            families[family.name].samples[0] = mine._replace(value=merge((mine.value, other.value)))
    yield from families.values()
