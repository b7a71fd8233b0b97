"""The feed page in a real browser: what one sees is what the server ranked, what one does it is told."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
from starlette.testclient import TestClient

from data.schema import LABEL_BIT
from serving.app import create_app
from serving.paging import CampaignPreferences
from serving.plan import Plan
from serving.plan_follower import Running
from serving.rollout import Rollout
from serving.state.protocol import Mark
from tests.serving.fake_world import HTTP, NOW, World, make_world

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


CAMPAIGN = {
    "campaigns": {
        "spring_sale": {
            "videos": [41], "impressions": {"total": 100}, "label": "Anzeige",
            "starts": "2023-11-01T00:00:00Z", "ends": "2023-12-01T00:00:00Z",
        }
    },
    "experiments": {"x": {"arms": {"control": {"weight": 1}, "other": {"weight": 0}}}},
}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path, plan=Plan(), campaigns=CampaignPreferences((1,)))
    yield world
    world.close()


@pytest.fixture
def url(world: World) -> Iterator[str]:
    """The page's address on a free port of the loopback."""
    settings = uvicorn.Config(create_app(world.service, HTTP), port=0, log_level="error", ws="none")
    socket = settings.bind_socket()
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    socket.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium with a profile of its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """A page without a past; it fails the test on any error in the console."""
    errors: list[str] = []
    context = chromium.new_context(viewport={"width": 1400, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert errors == []


def current(page: Any) -> int:
    """The number of the video that plays: the tests' videos are called ``video 5``."""
    page.wait_for_selector(".card.playing h2")
    return int(page.inner_text(".card.playing h2").split()[1])


def scroll_to_next(page: Any) -> int:
    before = current(page)
    page.keyboard.press("ArrowDown")
    until(lambda: current(page) != before)
    return current(page)


def until(condition: Any) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.025)
    raise AssertionError("it did not come true")


@pytest.mark.browser
def test_scrolling_buying_and_hiding(world: World, url: str, browser: Any) -> None:
    browser.goto(f"{url}/?user=5")
    shown = [current(browser)]
    assert shown == [5]
    browser.click(".card.playing .like")
    assert browser.get_attribute(".card.playing .like", "aria-pressed") == "true"
    shown.append(scroll_to_next(browser))
    assert shown[-1] == 6
    browser.click(".card.playing .product .open")
    browser.click(".card.playing .product .cart")
    browser.click(".card.playing .product .purchase")
    assert browser.text_content("#bag-count") == "2"
    shown.append(scroll_to_next(browser))
    browser.keyboard.press("h")
    until(lambda: current(browser) != 7)
    shown.append(current(browser))
    for _ in range(16):
        shown.append(scroll_to_next(browser))
    assert len(set(shown)) == len(shown) == 20
    assert shown == [v for v in range(5, 30) if v % 10][:20]
    assert int(browser.get_attribute(".card.playing", "aria-posinset")) == 20

    until(lambda: len(world.store.user(5, NOW).steps) >= 24)  # 19 watched, 5 done
    state = world.store.user(5, NOW)
    done = {(step.video_id, step.actions) for step in state.steps if step.is_action}
    labels = {"like": 5, "product_click": 6, "add_to_cart": 6, "purchase": 6, "hide": 7}
    assert done == {(video, LABEL_BIT[label]) for label, video in labels.items()}
    assert state.marks[Mark.hidden_video] == [7]
    watched = {step.video_id: step for step in state.steps if not step.is_action}
    assert set(watched) == set(shown[:-1])
    assert all(step.watch_ms >= 0 and step.surface == "feed" for step in watched.values())


@pytest.mark.browser
def test_reasons_figures_and_another_user(world: World, url: str, browser: Any) -> None:
    browser.goto(f"{url}/?user=5")
    current(browser)
    browser.keyboard.press("w")
    browser.wait_for_selector("#why dl")
    facts = browser.inner_text("#why")
    assert "1 of " in facts
    assert "bundle-a" in facts
    browser.click("#tab-server")
    browser.wait_for_selector("#server dl")
    assert "two tower" in browser.inner_text("#server")
    browser.select_option("#user", "50")
    until(lambda: current(browser) == 51)
    browser.fill("#other-id", "40")
    browser.keyboard.press("Enter")
    until(lambda: current(browser) == 41)
    assert browser.input_value("#user") == "40"
    assert browser.get_attribute("#feed", "role") == "feed"
    unnamed = browser.evaluate(
        "[...document.querySelectorAll('button, input, select')]"
        ".filter(e => !e.innerText.trim() && !e.ariaLabel && !e.labels?.length).length"
    )
    assert unnamed == 0
    browser.set_viewport_size({"width": 390, "height": 800})
    browser.click("[data-panel=you]")
    browser.wait_for_selector("#you.open")


@pytest.mark.browser
def test_campaigns_are_labelled_and_the_dashboard_shows_their_pace(
    world: World, url: str, browser: Any
) -> None:
    world.plans.running = Running(Rollout(msgspec.convert(CAMPAIGN, Plan), world.settings))
    browser.goto(f"{url}/?user=5")
    assert [current(browser), scroll_to_next(browser), scroll_to_next(browser)] == [5, 41, 6]
    browser.keyboard.press("ArrowUp")
    until(lambda: current(browser) == 41)
    assert browser.inner_text(".card.playing .badge") == "Anzeige"
    browser.keyboard.press("w")
    browser.wait_for_selector("#why dl")
    until(lambda: "a campaign's slot" in browser.inner_text("#why"))
    assert "Paid for" in browser.inner_text("#why")
    assert "x: control" in browser.inner_text("#why")
    browser.click("#tab-server")
    browser.wait_for_selector("#server .campaign")
    told = browser.inner_text("#server .campaign")
    assert "spring sale" in told
    assert "1 of 100" in told
    assert "1 slots" in told
    assert "x: control" in browser.inner_text("#server")


@pytest.mark.browser
def test_the_feeds_end_is_told(tmp_path: Path, url: str, browser: Any) -> None:
    browser.goto(f"{url}/?user=9")
    current(browser)
    browser.evaluate(
        "async () => { const ask = (cursor) => fetch('/v1/feed', {method: 'POST', body: JSON.stringify("
        "{user_id: '9', page_size: 100, ...(cursor ? {cursor} : {})})}).then(a => a.json());"
        " await ask((await ask()).cursor); }"
    )
    for _ in range(8):
        browser.keyboard.press("End")
        browser.evaluate("document.querySelector('#feed').scrollTo(0, 1e6)")
        browser.wait_for_timeout(150)
    browser.wait_for_selector("text=That was everything")


@pytest.mark.browser
def test_the_api_page_draws_every_route(url: str, browser: Any) -> None:
    browser.goto(f"{url}/docs")
    browser.wait_for_selector("main[aria-busy=false]")
    text = browser.inner_text("main")
    for route in ("/v1/feed", "/v1/score", "/v1/events", "/v1/explain", "/readyz"):
        assert route in text


def test_the_page_loads_nothing_from_elsewhere(world: World) -> None:
    """Every file that a page names is served, and no file names another host."""
    with TestClient(create_app(world.service, HTTP)) as client:
        for page in ("/", "/docs"):
            text = client.get(page).text
            paths = {part.split('"')[0] for key in ('src="', 'href="') for part in text.split(key)[1:]}
            for path in {path for path in paths if path.startswith("/static/")}:
                answer = client.get(path)
                assert answer.status_code == 200, path
                assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
                again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
                assert (again.status_code, again.content) == (304, b"")
        for name in ("api", "art", "card", "panels"):
            assert client.get(f"/static/{name}.js").headers["content-type"].startswith("text/javascript")
