"""A real browser: Debian's Chromium, headless, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator

import httpx
import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from tests.api.conftest import BASE, Json, listening
from tracker.settings import Settings

__all__ = ["Dashboard", "Fleet"]

BINARIES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
KEY = "write-key-of-the-tests"
READ_KEY = "read-key-of-the-tests"


class Fleet:
    """What the runs do, over the API."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def call(self, method: str, path: str = "", **body: object) -> Json:
        answer = await self.client.request(method, BASE + path, json=body)
        assert answer.is_success, answer.text
        content: Json = answer.json()
        return content

    async def start(self, task: str | None, agent: str = "agent-1", **fields: object) -> Json:
        made = await self.call("POST", "", agentId=agent, triggerType="manual", taskId=task, **fields)
        session: Json = made["session"]
        return session


class Dashboard:
    """The page, and what must never happen on it: ``problems`` holds errors and breaches of the policy."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._said)
        page.on("dialog", lambda dialog: self.problems.append(f"a dialog: {dialog.message}"))

    async def open(self, key: str | None = KEY) -> None:
        await self.page.goto(self.url)
        if key is not None:
            await self.give(key)
            await self.page.locator("#state[data-state=live]").wait_for()

    async def give(self, key: str) -> None:
        await self.page.get_by_label("Key", exact=True).fill(key)
        await self.page.keyboard.press("Enter")

    def _said(self, message: ConsoleMessage) -> None:
        # The browser itself tells of every answer that is an error, those that the page expects too.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.problems.append(message.text)


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    path = next((found for name in BINARIES if (found := shutil.which(name))), None)
    if path is None:
        missing = "needs a browser: install chromium"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        await opened.close()


@pytest.fixture
def look() -> Json:
    """How the page is looked at, as Playwright names it. Parametrize it where that matters."""
    return {"viewport": {"width": 1400, "height": 1000}}


@pytest.fixture
async def context(browser: Browser, look: Json) -> AsyncIterator[BrowserContext]:
    opened = await browser.new_context(**look)
    opened.set_default_timeout(20_000)
    yield opened
    await opened.close()


@pytest.fixture
def keyed(settings: Settings) -> Settings:
    """Settings of a pod that asks for a key and sweeps often."""
    keys = Settings.load({"TRACKER_API_KEYS": KEY, "TRACKER_READ_API_KEYS": READ_KEY})
    update = {"api_keys": keys.api_keys, "read_api_keys": keys.read_api_keys, "sweep_interval_seconds": 0.2}
    return settings.model_copy(update=update)


@pytest.fixture
async def server(keyed: Settings) -> AsyncIterator[str]:
    async with listening(keyed) as url:
        yield url


@pytest.fixture
async def fleet(server: str) -> AsyncIterator[Fleet]:
    async with httpx.AsyncClient(base_url=server, headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as client:
        yield Fleet(client)


@pytest.fixture
async def dashboard(context: BrowserContext, server: str) -> AsyncIterator[Dashboard]:
    """Not opened yet. At the end nothing may have gone wrong on it."""
    dashboard = Dashboard(await context.new_page(), server)
    yield dashboard
    await dashboard.page.close()  # or the server waits for its stream to end
    assert dashboard.problems == []
