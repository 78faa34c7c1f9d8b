"""Webhooks: each event reaches the receiver at least once, signed, whatever that one does, and nobody else suffers."""

from __future__ import annotations

import base64
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.api.conftest import Api, running
from tests.api.receiver import OK, SECRET, Call, Receiver, receiving
from tests.patience import until
from tests.raw import read_now, read_raw
from tests.redis_server import running_redis
from tests.scrape import Scrape
from tracker.api import webhooks
from tracker.api.webhooks import ATTEMPTS, JITTER, delay_before, sign
from tracker.settings import Settings

ENCODED = "whsec_" + base64.b64encode(SECRET).decode()
ERROR = b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n"
SHORT = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort"
FAILURES = [
    ERROR,
    b"",
    b"this is no HTTP\r\n\r\n",
    b"HTTP/1.1 301 Moved\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n",
]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as opened:
        yield opened


def hooked(settings: Settings, receiver: Receiver, types: str = "session.ended") -> Settings:
    """The settings of a pod that tells the receiver."""
    added = Settings.load(
        {
            "TRACKER_WEBHOOK_URL": receiver.url,
            "TRACKER_WEBHOOK_SECRET": ENCODED,
            "TRACKER_WEBHOOK_TYPES": types,
        }
    )
    names = ("webhook_url", "webhook_secret", "webhook_types")
    return settings.model_copy(update={name: getattr(added, name) for name in names})


@asynccontextmanager
async def telling(settings: Settings, receiver: Receiver, types: str = "session.ended") -> AsyncIterator[Api]:
    """A pod that tells the receiver what happens from now on."""
    async with running(hooked(settings, receiver, types)) as api:
        await until(lambda: listens(api))
        yield api


async def listens(api: Api) -> bool:
    """Whether the pod has taken its place in the feed of each shard."""
    return all([await api.store.scripts.client.exists(shard.events) for shard in api.store.scripts.shards])


async def run_once(api: Api, *tasks: str) -> None:
    for task in tasks:
        await api.create(taskId=task)
        assert (await api.delete(f"/by-task/{task}")).json() == {"deleted": True}


def told(receiver: Receiver) -> list[str]:
    return [call.event["session"]["taskId"] for call in receiver.calls]


async def has_told(receiver: Receiver, count: int) -> None:
    async def enough() -> bool:
        return len(receiver.calls) >= count

    await until(enough)


def test_signatures_are_those_of_the_standard() -> None:
    """The example that the standard's own libraries are tested with."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_attempts_come_later_and_later_for_about_a_day() -> None:
    delays = [delay_before(attempt) for attempt in range(2, ATTEMPTS + 1)]
    assert delays[:3] == [5, 10, 20]
    assert delays == sorted(delays)
    assert max(delays) == 3600
    assert 24 * 3600 <= sum(delays) < 26 * 3600
    assert 0 < JITTER < 0.5


async def test_an_end_is_told_whole_and_signed(settings: Settings, receiver: Receiver) -> None:
    async with telling(settings, receiver) as api:
        session = await api.create(taskId="t/1", metadata={"k": "🦄"})
        await api.put("/provider-session/t%2F1", json={"providerSessionId": "p-1"})
        await api.delete("/by-task/t%2F1")
        await has_told(receiver, 1)
        (event,) = await api.events(type="session.ended")
    (call,) = receiver.calls
    call.verify()
    assert call.path == "/hook?token=t"
    assert call.headers["content-type"] == "application/json"
    assert call.event == {**event, "id": call.headers["webhook-id"]}
    assert call.event["session"] == {**session, "providerSessionId": "p-1"}
    assert call.headers["webhook-id"].endswith(event["id"])


@pytest.mark.usefixtures("quick")
async def test_metrics_tell_what_came_of_each_attempt(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "ATTEMPTS", 3)
    answers = iter([ERROR, OK, ERROR, ERROR, ERROR])
    receiver.answer = lambda call: next(answers)
    async with telling(settings, receiver) as api:
        await run_once(api, "t1")
        await has_told(receiver, 2)
        await run_once(api, "t2")
        await has_told(receiver, 5)
        await until(lambda: settled(api))
        seen = Scrape((await api.client.get("/metrics")).text)
    name = "tracker_webhook_deliveries_total"
    assert [seen.value(name, outcome=outcome) for outcome in ("told", "later", "parked")] == [1, 3, 1]


async def test_other_types_are_told_if_asked_for(settings: Settings, receiver: Receiver) -> None:
    async with telling(settings, receiver, "session.created,session.updated") as api:
        await api.create(taskId="t1")
        await api.put("/provider-session/t1", json={"providerSessionId": "p-1"})
        await api.delete("/by-task/t1")
        await has_told(receiver, 2)
    assert sorted(call.event["type"] for call in receiver.calls) == ["session.created", "session.updated"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of attempts passes in a second."""
    for name, seconds in {"FIRST_DELAY_SECONDS": 0.001, "LONGEST_DELAY_SECONDS": 0.01, "POLL_SECONDS": 0.01}.items():
        monkeypatch.setattr(webhooks, name, seconds)


async def settled(api: Api) -> bool:
    """Whether nothing is left to tell: the feed is read to its end, and what was taken of it is settled."""
    groups = [await api.store.scripts.client.xinfo_groups(shard.events) for shard in api.store.scripts.shards]
    for (group,), raw in zip(groups, await read_raw(api.store), strict=True):
        entries = raw["events"].content
        if "hooks" in raw or (entries and group["last-delivered-id"] != entries[-1][0]):
            return False
    return True


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("failure", FAILURES, ids=["error", "breaks off", "no HTTP", "redirect"])
async def test_a_receiver_that_fails_is_told_again_under_the_same_id(
    settings: Settings, receiver: Receiver, failure: bytes
) -> None:
    answers = iter([failure, failure, OK])
    receiver.answer = lambda call: next(answers)
    async with telling(settings, receiver) as api:
        await run_once(api, "t1")
        await has_told(receiver, 3)
        await until(lambda: settled(api))
    assert told(receiver) == ["t1"] * 3
    assert len({call.headers["webhook-id"] for call in receiver.calls}) == 1
    assert all(call.path == "/hook?token=t" for call in receiver.calls), "a redirect was followed"
    for call in receiver.calls:
        call.verify()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("answer", [ENDLESS, SHORT], ids=["endless", "cut off"])
async def test_what_follows_a_head_that_says_yes_does_not_matter(
    settings: Settings, receiver: Receiver, answer: bytes
) -> None:
    receiver.answer = lambda call: answer
    async with telling(settings, receiver) as api:
        await run_once(api, "t1", "t2")
        await has_told(receiver, 2)
        await until(lambda: settled(api))
    assert sorted(told(receiver)) == ["t1", "t2"]


@pytest.mark.usefixtures("quick")
async def test_after_a_day_of_failures_an_event_is_parked_and_the_next_one_told(
    settings: Settings, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = lambda call: ERROR if call.event["session"]["taskId"] == "t1" else OK
    async with telling(settings, receiver) as api:
        await run_once(api, "t1", "t2")
        await has_told(receiver, ATTEMPTS + 1)
        await until(lambda: settled(api))
        (raw,) = await read_raw(api.store)
        assert raw["counters"].content[b"parked"] == b"1"
        assert len(raw["parked"].content) == 1
    assert told(receiver).count("t1") == ATTEMPTS
    assert told(receiver).count("t2") == 1
    lines = [record.getMessage() for record in caplog.records if record.name == "tracker.webhooks"]
    assert any("given up after 34 attempts: it answered 500" in line for line in lines)
    assert not any("token" in line for line in lines), "receivers put secrets into their URL"


async def test_a_receiver_asks_for_patience_and_gets_an_hour_of_it(settings: Settings, receiver: Receiver) -> None:
    receiver.answer = lambda call: b"HTTP/1.1 503 Busy\r\nretry-after: 7200\r\ncontent-length: 0\r\n\r\n"
    async with telling(settings, receiver) as api:
        await run_once(api, "t1")

        async def waits() -> bool:
            (raw,) = await read_raw(api.store)
            ahead = max(raw["hooks"].content.values(), default=0) - await read_now(api.store) if "hooks" in raw else 0
            return bool(3_600_000 * (1 - JITTER) - 10_000 < ahead < 3_600_000 * (1 + JITTER))

        await until(waits)
    assert len(receiver.calls) == 1


@pytest.mark.usefixtures("quick")
async def test_a_receiver_that_hangs_holds_up_nobody(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More events than a pod tells at once hang; meanwhile runs beat, begin and end; then all are told."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(webhooks, "ATTEMPT_SECONDS", 0.5)
    hanging = True
    receiver.answer = lambda call: None if hanging else OK
    names = [f"t{number}" for number in range(2 * webhooks.SLOTS)]
    async with telling(settings, receiver) as api:
        await api.create(taskId="live")
        await run_once(api, *names)
        await has_told(receiver, webhooks.SLOTS)
        for _ in range(50):
            assert (await api.put("/heartbeat/live")).json()["updated"] is True
        hanging = False
        receiver.released.set()
        await until(lambda: settled(api))
    assert set(told(receiver)) == set(names)
    lines = [record.getMessage() for record in caplog.records if record.name == "tracker.webhooks"]
    assert any("fails" in line for line in lines)
    assert any("is well again" in line for line in lines)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("backend", ["redis"])
@pytest.mark.parametrize("shards", [1, 4])
async def test_two_pods_tell_a_receiver_that_fails_hangs_and_lies_everything_at_least_once(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "ATTEMPT_SECONDS", 0.5)
    drawn = random.Random(7)
    taken: set[str] = set()

    def answer(call: Call) -> bytes | None:
        reply = drawn.choice([OK, OK, OK, *FAILURES, SHORT, None])
        if reply in (OK, SHORT):
            taken.add(call.event["session"]["taskId"])
        return reply

    receiver.answer = answer
    names = [f"t{number}" for number in range(200)]
    async with telling(settings, receiver) as first, telling(settings, receiver) as second:
        await first.create(taskId="live")
        for name in names:
            pod = drawn.choice([first, second])
            await run_once(pod, name)
            assert (await pod.put("/heartbeat/live")).json()["updated"] is True
        await until(lambda: settled(first), 60)
        ends = {event["session"]["taskId"] for event in await first.events(type="session.ended")}
    assert ends == set(names) == taken
    for call in receiver.calls:
        call.verify()


@pytest.mark.usefixtures("quick")
async def test_a_store_that_goes_away_delays_the_telling_and_loses_none(tmp_path: Path, receiver: Receiver) -> None:
    with running_redis(tmp_path) as server:
        settings = Settings(store_url=server.url, store_timeout_seconds=0.3, sweep_interval_seconds=60)
        async with telling(settings, receiver) as api:
            await run_once(api, "t1")
            await has_told(receiver, 1)
            server.freeze()
            try:
                assert (await api.put("/heartbeat/t1")).status_code == 503
            finally:
                server.thaw()

            async def works() -> bool:
                return (await api.get("/stats")).status_code == 200

            await until(works)
            await run_once(api, "t2")

            async def both() -> bool:
                return set(told(receiver)) == {"t1", "t2"}

            await until(both)


async def test_without_an_address_nothing_is_taken(settings: Settings) -> None:
    async with running(settings) as api:
        await run_once(api, "t1")
        (raw,) = await read_raw(api.store)
        assert not [name for name in raw if name.startswith("hook")]
