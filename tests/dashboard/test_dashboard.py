"""The dashboard in a real browser: what it shows, what it does, and what it survives."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, Locator, expect

from tests.api.conftest import Json, listening
from tests.dashboard.conftest import KEY, READ_KEY, Dashboard, Fleet
from tests.redis_server import running_redis
from tracker.settings import Settings

HOSTILE = [
    "<img src=x onerror=\"document.title='pwned'\">",
    "<script>document.title='pwned'</script>",
    "</span></div><h1>pwned</h1>",
    "javascript:alert(1)",
    "\u202eright to left\u202c",
    "a\u0000b",
    "🦄" * 40,
]

expect.set_options(timeout=20_000)


def row(dashboard: Dashboard, text: str) -> Locator:
    return dashboard.page.locator("#rows .row:not([hidden])", has_text=text)


def rows(dashboard: Dashboard) -> Locator:
    return dashboard.page.locator("#rows .row:not([hidden])")


async def test_asks_for_the_key_once_and_keeps_it_in_the_tab_alone(
    dashboard: Dashboard, fleet: Fleet, context: BrowserContext
) -> None:
    await fleet.start("task-1")
    page = dashboard.page
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    await dashboard.open(key=None)
    await dashboard.give("wrong")
    await expect(page.locator("#ask-key .wrong")).to_have_text("The tracker does not know this key.")
    await dashboard.give("no key at all")
    await expect(page.locator("#ask-key .wrong")).to_contain_text("no spaces")
    await dashboard.give(KEY)
    await expect(row(dashboard, "task-1")).to_be_visible()
    await page.reload()
    await expect(row(dashboard, "task-1")).to_be_visible()
    await expect(page.locator("#ask-key")).to_be_hidden()
    assert not [address for address in addresses if KEY in address]
    assert await context.cookies() == []
    assert await page.evaluate("localStorage.length") == 0

    other = await context.new_page()
    await other.goto(dashboard.url)
    await expect(other.locator("#ask-key")).to_be_visible()
    await other.close()

    await page.get_by_role("button", name="Forget key").click()
    await expect(page.locator("#ask-key")).to_be_visible()


async def test_shows_at_once_what_begins_changes_and_ends(dashboard: Dashboard, fleet: Fleet) -> None:
    await fleet.start("before", taskDescription="was there already")
    await dashboard.open()
    page = dashboard.page
    await expect(row(dashboard, "before")).to_contain_text("was there already")
    await fleet.start("during", agent="agent-2")
    await expect(row(dashboard, "during")).to_contain_text("agent-2")
    await expect(page.locator("#shown")).to_have_text("2")
    await fleet.call("PUT", "/heartbeat/during", progress="3 of 7")
    await expect(row(dashboard, "during")).to_contain_text("3 of 7")
    await fleet.call("DELETE", "/by-task/during")
    await expect(row(dashboard, "during")).to_have_count(0)
    await expect(page.locator("#events li").first).to_contain_text("deleted")
    await expect(page.locator("#events li")).to_have_count(3)
    await expect(page.locator("#counts")).to_contain_text("Live1")
    await expect(page.locator("#chart figcaption")).to_have_text("In all: 1 live, 2 started, 1 ended")


async def test_a_run_that_crashed_is_shown_with_what_resumes_it(
    dashboard: Dashboard, fleet: Fleet, context: BrowserContext
) -> None:
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    await dashboard.open()
    await fleet.start("doomed", ttlSeconds=1)
    await fleet.call("PUT", "/provider-session/doomed", providerSessionId="prov-42")
    crash = dashboard.page.locator("#crashes li", has_text="doomed")
    await expect(crash).to_contain_text("prov-42")
    await expect(row(dashboard, "doomed")).to_have_count(0)
    await crash.get_by_role("button", name="Copy").click()
    await expect(crash.get_by_role("button", name="Copied")).to_be_visible()
    assert await dashboard.page.evaluate("navigator.clipboard.readText()") == "prov-42"
    await crash.get_by_role("button", name="doomed").click()
    details = dashboard.page.get_by_role("dialog")
    await expect(details).to_contain_text("prov-42")
    await expect(details.get_by_role("button", name="End")).to_have_count(0)


async def test_the_bar_turns_as_the_heartbeat_goes_stale(dashboard: Dashboard, fleet: Fleet) -> None:
    await fleet.start("quiet", ttlSeconds=8)
    await fleet.start("lively", ttlSeconds=1800)
    await dashboard.open()
    await expect(row(dashboard, "quiet")).to_have_attribute("data-mood", re.compile("stale|dying"))
    await expect(row(dashboard, "lively")).to_have_attribute("data-mood", "well")


async def test_filters_and_sorts(dashboard: Dashboard, fleet: Fleet) -> None:
    for number, (agent, trigger) in enumerate([("zoe", "cron"), ("adam", "manual"), ("mia", "cron")]):
        await fleet.call(
            "POST", "", agentId=agent, triggerType=trigger, taskId=f"task-{number}", metadata={"team": agent}
        )
    await dashboard.open()
    page = dashboard.page
    await expect(rows(dashboard)).to_have_count(3)
    await page.keyboard.press("/")
    await page.keyboard.type("CRON zo")
    await expect(rows(dashboard)).to_have_count(1)
    await expect(page.locator("#shown")).to_have_text("1 of 3")
    await page.get_by_label("Filter").fill("nobody like that")
    await expect(rows(dashboard)).to_have_count(0)
    await page.get_by_label("Filter").fill("")
    await page.get_by_label("Order").select_option("agent")
    for place, agent in enumerate(["adam", "mia", "zoe"], start=2):
        await expect(page.locator(f"#rows .row[aria-rowindex='{place}']")).to_contain_text(agent)


async def test_stops_and_ends_a_run_but_asks_first(dashboard: Dashboard, fleet: Fleet) -> None:
    session = await fleet.start("task-1")
    await dashboard.open()
    page = dashboard.page
    await row(dashboard, "task-1").get_by_role("button", name="to stop").click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert (await fleet.call("GET", f"/{session['id']}"))["session"]["stopRequestedAt"] is None
    await row(dashboard, "task-1").get_by_role("button", name="to stop").click()
    await page.get_by_role("dialog").get_by_role("button", name="Ask it to stop").click()
    await expect(row(dashboard, "task-1").get_by_role("button", name="to stop")).to_be_disabled()
    assert (await fleet.call("GET", f"/{session['id']}"))["session"]["stopRequestedAt"] is not None

    await row(dashboard, "task-1").get_by_role("button", name="End task-1").click()
    await page.keyboard.press("Escape")
    await expect(row(dashboard, "task-1")).to_be_visible()
    await row(dashboard, "task-1").get_by_role("button", name="End task-1").click()
    await page.get_by_role("dialog").get_by_role("button", name="End it").click()
    await expect(row(dashboard, "task-1")).to_have_count(0)
    assert (await fleet.call("GET"))["sessions"] == []


async def test_a_read_key_shows_everything_and_offers_nothing(dashboard: Dashboard, fleet: Fleet) -> None:
    await fleet.start("task-1")
    await dashboard.open(READ_KEY)
    await expect(row(dashboard, "task-1")).to_be_visible()
    await expect(dashboard.page.get_by_role("button", name="End")).to_have_count(0)
    await row(dashboard, "task-1").click()
    await expect(dashboard.page.get_by_role("dialog")).to_be_visible()
    await expect(dashboard.page.get_by_role("button", name="Stop")).to_have_count(0)


async def test_hostile_texts_are_texts(dashboard: Dashboard, fleet: Fleet) -> None:
    for number, text in enumerate(HOSTILE):
        await fleet.call(
            "POST",
            agentId=text,
            triggerType=text,
            taskId=f"{number} {text}",
            taskDescription=text,
            metadata={text[:64]: text},
        )
        await fleet.call("PUT", "/heartbeat", taskIds=[f"{number} {text}"])
    await fleet.start("<b>doomed</b>", agent=HOSTILE[0], ttlSeconds=1)
    await dashboard.open()
    page = dashboard.page
    await page.locator("#crashes li", has_text="<b>doomed</b>").wait_for()
    for number, text in enumerate(HOSTILE):
        name = page.locator("strong", has_text=re.compile(f"^{number} "))
        await page.locator("#rows .row:not([hidden])", has=name).click()
        shown = await page.get_by_role("dialog").locator("h2").text_content()
        assert shown == f"{number} {text}"
        await page.keyboard.press("Escape")
    assert await page.title() == "Tracker"
    assert await page.locator("main img, main script, main h1, dialog img, dialog script, main b b").count() == 0


async def test_works_by_keyboard(dashboard: Dashboard, fleet: Fleet) -> None:
    for number in range(100):
        await fleet.start(f"task-{number:02}", ttlSeconds=1000 + number)
    await dashboard.open()
    page = dashboard.page
    await expect(page.locator("#shown")).to_have_text("100")
    await page.locator("#rows").focus()
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog").locator("h2")).to_have_text("task-01")
    await page.keyboard.press("Escape")
    await page.keyboard.press("End")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog").locator("h2")).to_have_text("task-99")


@pytest.mark.parametrize("backend", ["redis"])
async def test_five_thousand_sessions_are_scrolled_through_with_a_few_rows(dashboard: Dashboard, fleet: Fleet) -> None:
    for start in range(0, 5000, 100):
        await asyncio.gather(*(fleet.start(f"task-{number:04}") for number in range(start, start + 100)))
    await dashboard.open()
    page = dashboard.page
    await expect(page.locator("#shown")).to_have_text("5,000")
    await page.get_by_label("Order").select_option("task")
    await page.locator("#rows").evaluate("view => { view.scrollTop = view.scrollHeight }")
    await expect(row(dashboard, "task-4999")).to_be_visible()
    assert await page.locator("#rows .row").count() < 60


@pytest.mark.parametrize("look", [{"viewport": {"width": 390, "height": 844}}], ids=["phone"])
async def test_fits_a_phone(dashboard: Dashboard, fleet: Fleet) -> None:
    await fleet.start("x" * 300, agent="y" * 300, taskDescription="z" * 300)
    await dashboard.open()
    await expect(row(dashboard, "xxx")).to_be_visible()
    wide: Json = await dashboard.page.evaluate("({ page: document.documentElement.scrollWidth, view: innerWidth })")
    assert wide["page"] <= wide["view"]
    await row(dashboard, "xxx").click()
    await expect(dashboard.page.get_by_role("dialog")).to_be_visible()


@pytest.mark.parametrize("backend", ["redis"])
async def test_a_server_that_comes_back_is_followed_again_without_loss(
    keyed: Settings, context: BrowserContext
) -> None:
    page = await context.new_page()
    async with listening(keyed) as url:
        dashboard = Dashboard(page, url)
        await dashboard.open()
    await expect(page.locator("#state")).to_contain_text("The server is away")
    async with listening(keyed, int(url.rpartition(":")[2])):
        await expect(page.locator("#state")).to_have_text("Live")
    await page.close()


@pytest.mark.parametrize("backend", ["redis"])
async def test_a_store_that_is_away_is_told_and_what_was_known_stays(
    context: BrowserContext, tmp_path: Path, keyed: Settings
) -> None:
    with running_redis(tmp_path) as redis:
        settings = keyed.model_copy(update={"store_url": redis.url, "store_timeout_seconds": 0.5})
        async with listening(settings) as url:
            page = await context.new_page()
            dashboard = Dashboard(page, url)
            await dashboard.open()
            redis.freeze()
            try:
                await expect(page.locator("#state")).to_contain_text("The store is away")
            finally:
                redis.thaw()
            await expect(page.locator("#state")).to_have_text("Live")
            assert dashboard.problems == []
            await page.close()
