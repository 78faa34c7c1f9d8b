"""Webhooks: tells a receiver of events, each at least once, signed as https://www.standardwebhooks.com has it.

A receiver that fails or hangs is tried again, later and later, for a day; it slows down nothing but itself.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import random
import time
from collections.abc import Mapping

import httpx
from pydantic_core import to_json

from tracker import __version__
from tracker.api.metrics import Metrics
from tracker.errors import StoreError
from tracker.settings import Settings
from tracker.store.deliveries import Deliveries, Delivery, Outcome
from tracker.store.store import Store

__all__ = ["Webhooks", "delay_before", "sign"]

logger = logging.getLogger("tracker.webhooks")

SLOTS = 16
"""Events told at once by a pod."""
POLL_SECONDS = 0.5
ATTEMPT_SECONDS = 15
"""For one attempt, from the connection to the answer's head."""
LEASE_SECONDS = 60
"""A pod that takes longer than that to tell has died: another one tells again."""
FIRST_DELAY_SECONDS = 5
LONGEST_DELAY_SECONDS = 3600
ATTEMPTS = 34
"""With these delays the last one comes about a day after the first."""
JITTER = 0.2
READ_BYTES = 65_536
"""An answer's body is read, so that its connection can be used again, but not a longer one."""


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``: what a receiver with the same secret (bytes) and headers comes to as well."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def delay_before(attempt: int) -> float:
    """Seconds to wait before that attempt (2 or more), without jitter: twice as long each time, up to an hour."""
    return float(min(FIRST_DELAY_SECONDS * 2 ** (attempt - 2), LONGEST_DELAY_SECONDS))


class Webhooks:
    """Tells the receiver of the settings what this pod gets hold of, and ``metrics`` what came of it."""

    def __init__(self, settings: Settings, store: Store, metrics: Metrics) -> None:
        self._metrics = metrics
        self._url = httpx.URL(settings.webhook_url)
        self._secret = settings.webhook_secret
        self._deliveries = Deliveries(store.scripts, settings.webhook_types, LEASE_SECONDS)
        self._shards = settings.shards
        self._telling: set[asyncio.Task[None]] = set()
        self._failing = False

    async def run(self) -> None:
        """Tells for ever; when cancelled it leaves what is under way to the lease."""
        limits = httpx.Limits(max_connections=SLOTS + self._shards)
        # No proxy or password of the environment: the receiver is the one of the settings. Redirects are not followed.
        async with httpx.AsyncClient(timeout=ATTEMPT_SECONDS, limits=limits, trust_env=False) as client:
            try:
                while True:
                    if not await self._fetch(client):
                        await asyncio.sleep(POLL_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - spreads pods
            finally:
                for task in self._telling:
                    task.cancel()
                await asyncio.gather(*self._telling, return_exceptions=True)

    async def _fetch(self, client: httpx.AsyncClient) -> bool:
        """Starts to tell what can be had; whether there may be more at once."""
        free = SLOTS - len(self._telling)
        if free <= 0:
            await asyncio.wait(self._telling, return_when=asyncio.FIRST_COMPLETED)
            return True
        try:
            taken, more = await self._deliveries.take(-(-free // self._shards))
        except StoreError:
            return False  # the sweeper tells of a store that is away
        except Exception:
            logger.exception("webhooks: cannot take events")
            return False
        for delivery in taken:
            task = asyncio.create_task(self._tell(client, delivery))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        return more or bool(taken)

    async def _tell(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        wait, problem = await self._attempt(client, delivery)
        if problem is None:
            outcome = Outcome(delivery, "told")
        elif delivery.attempt >= ATTEMPTS:
            outcome = Outcome(delivery, "parked")
            logger.error("webhook %s: given up after %d attempts: %s", delivery.id, delivery.attempt, problem)
        else:
            seconds = max(wait, delay_before(delivery.attempt + 1)) * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
            outcome = Outcome(delivery, "later", seconds)
        self._metrics.delivered(outcome.kind)
        self._say(problem)
        try:
            await self._deliveries.settle([outcome])
        except StoreError as error:
            logger.warning("webhook %s: it will be told again, for its outcome is lost: %s", delivery.id, error)

    async def _attempt(self, client: httpx.AsyncClient, delivery: Delivery) -> tuple[float, str | None]:
        """How long the receiver asks us to wait (seconds), and what went wrong; None if it has taken the event."""
        event = delivery.event
        body = to_json(event)
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": f"tracker/{__version__}",
            "webhook-id": event["id"],
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._secret, event["id"], timestamp, body),
        }
        told = False
        try:
            async with (
                asyncio.timeout(ATTEMPT_SECONDS),
                client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                told = answer.is_success
                if not told:
                    return _asked_to_wait(answer.headers), f"it answered {answer.status_code}"
                if int(answer.headers.get("content-length", READ_BYTES + 1)) <= READ_BYTES:
                    await answer.aread()
        except TimeoutError:
            problem = "it did not answer in time"
        except (httpx.HTTPError, httpx.StreamError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            problem = ""
        # What goes wrong behind a head that says yes changes nothing: it has the event.
        return 0, None if told else problem

    def _say(self, problem: str | None) -> None:
        """One line when the receiver begins to fail, and one when it is well again."""
        failing = problem is not None
        if failing and not self._failing:
            logger.warning("webhooks: the receiver %s fails: %s", self._url.host, problem)
        elif self._failing and not failing:
            logger.info("webhooks: the receiver %s is well again", self._url.host)
        self._failing = failing


def _asked_to_wait(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return min(int(text), LONGEST_DELAY_SECONDS) if text.isascii() and text.isdigit() and len(text) < 10 else 0
