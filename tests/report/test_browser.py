"""The page works in a real Chromium."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, sync_playwright
from playwright.sync_api import Page as Tab

from tests.report.conftest import Page
from tests.report.sample import SCRIPT_KEY

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """A headless browser with a new, empty profile."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        why = "no Chromium: apt-get update && apt-get install --no-install-recommends chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=program,
            headless=True,
            args=FLAGS,
            viewport={"width": 1400, "height": 900},
        )
        yield context
        context.close()


@pytest.fixture
def tab(page: Page, browser: BrowserContext) -> Iterator[Tab]:
    """The page in a tab. Any console message, error or request to elsewhere fails the test."""
    problems: list[str] = []
    opened = browser.new_page()
    opened.on("console", lambda message: problems.append(f"console: {message.text}"))
    opened.on("pageerror", lambda error: problems.append(f"error: {error}"))
    opened.on(
        "request",
        lambda asked: asked.url.startswith(("data:", "file:///")) or problems.append(f"request: {asked.url}"),
    )
    opened.goto(page.path.as_uri())
    yield opened
    opened.close()
    assert problems == []


def shown_pictures(tab: Tab) -> list[int]:
    """Widths in pixels of the gallery's decoded images; 0 for one that does not decode."""
    return tab.evaluate(
        "Promise.all([...document.querySelectorAll('#shown img')].map((i) => i.decode().then(() => i.naturalWidth, () => 0)))"
    )


def test_the_page_can_be_clicked_through(tab: Tab) -> None:
    assert "owned" not in tab.title()

    # Every score has its tab, and its pictures decode.
    tabs = tab.get_by_role("tab")
    assert tabs.count() > 20
    panels = set()
    for name in ("blur", "flip_p90", "far_share"):
        tab.get_by_role("tab", name=name, exact=True).click()
        assert tab.get_by_role("tab", selected=True).all_inner_texts() == [name]
        assert tab.locator("#shown .tile").count() == 12
        widths = shown_pictures(tab)
        assert len(widths) >= 24
        assert min(widths) > 0
        panels.add(tab.locator("#shown").inner_text())
    assert len(panels) == 3

    # A click enlarges a tile with all its scores; arrows move on; Escape closes the view and gives the focus back.
    tile = tab.locator("#shown .tile").first
    tile.click()
    dialog = tab.get_by_role("dialog")
    assert dialog.is_visible()
    first = dialog.get_by_role("heading").inner_text()
    assert first == tile.get_attribute("title")
    assert dialog.locator(".values div").count() > 20
    assert dialog.locator("img").count() >= 1
    tab.keyboard.press("ArrowRight")
    assert dialog.get_by_role("heading").inner_text() == tab.locator("#shown .tile").nth(1).get_attribute("title")
    tab.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert tile.evaluate("(tile) => tile === document.activeElement")


def test_thresholds_are_drawn_with_what_they_remove(tab: Tab) -> None:
    line = tab.locator("svg.histogram .threshold").first
    box = line.evaluate("(line) => line.getBoundingClientRect().height")
    assert box > 20
    assert line.evaluate("(line) => getComputedStyle(line).stroke") not in ("none", "rgba(0, 0, 0, 0)")
    assert "removes" in tab.locator("li.rule").first.inner_text()


def test_everything_works_by_keyboard(tab: Tab) -> None:
    tab.get_by_role("tab").first.focus()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    tab.keyboard.press("End")
    assert tab.get_by_role("tab").last.get_attribute("aria-selected") == "true"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert tab.get_by_role("dialog").is_visible()
    tab.keyboard.press("Escape")

    # A table sorts by number, not by text, in both directions.
    head = tab.locator("#scores th", has_text="Median")
    head.get_by_role("button").focus()
    for order in ("descending", "ascending"):
        tab.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        values = [
            float(value)
            for value in tab.locator("#scores table", has_text="Median")
            .locator("td:nth-child(5)")
            .evaluate_all("(cells) => cells.map((cell) => cell.dataset.value)")
        ]
        assert values == sorted(values, reverse=order == "descending")


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_follows_the_scheme(tab: Tab, width: int, scheme: str) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    levels = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    assert (sum(levels) / 3 > 128) == (scheme == "light")


def test_hostile_names_are_shown_and_do_nothing(tab: Tab) -> None:
    tiles = tab.locator(".tile", has_text=SCRIPT_KEY)
    for name in tab.get_by_role("tab").all():
        name.click()
        if tiles.count():
            break
    tiles.first.click()
    assert tab.get_by_role("dialog").get_by_role("heading").inner_text() == SCRIPT_KEY
    assert "owned" not in tab.title()
