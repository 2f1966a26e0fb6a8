"""The page of `captioning.browse` in a real browser: legible, usable by keyboard, and only text."""

from __future__ import annotations

import pytest

from captioning import browse
from captioning.describe import describe
from tests.captioning.hostile_page import TEXTS, hostile_data
from tests.captioning.ruler import IDS, Ruler, write_labels
from tests.reporting.browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no chromium or google-chrome; for example apt-get install chromium",
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


NEXT_FRAME = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"


def press_enter(browser):
    """Press Enter with its character, without which it does not activate a button."""
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent",
            type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r",
        )  # fmt: skip


def search(browser, words):
    browser.value(f"document.getElementById('words').value = {words!r}")
    browser.value("document.getElementById('words').dispatchEvent(new Event('input'))")


@pytest.mark.parametrize("width", [1200, 360])
def test_a_page_full_of_markup(browser, tmp_path, width):
    page = tmp_path / "browse.html"
    page.write_text(browse.render(hostile_data()), encoding="utf-8")
    browser.open(page, width)
    assert browser.value("document.querySelectorAll('article').length") == len(TEXTS)
    shown = browser.value("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert shown == list(TEXTS)
    # Nothing ran, nothing was opened or fetched, and no element came from a text.
    assert browser.value("window.hit") is None
    assert browser.value("document.scripts.length") == 2
    assert browser.value("document.querySelectorAll('svg, iframe, b, article script').length") == 0
    methods = [event.get("method") for event in browser.events]
    assert not {"Page.javascriptDialogOpening", "Page.windowOpen"} & set(methods)
    complaints = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [e for e in browser.events if e.get("method") in complaints] == []
    requests = [e for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    urls = {event["params"]["request"]["url"] for event in requests}
    assert {url for url in urls if not url.startswith("data:")} == {page.as_uri()}
    assert browser.value("document.documentElement.scrollWidth") <= width
    # The policy, and not only the escapes, keeps scripts from running.
    browser.value("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=hit=1>')")
    script = "document.createElement('script')"
    browser.value(f"document.body.appendChild({script}).textContent = 'window.hit = 2'")
    wait = "new Promise(done => setTimeout(done, 300))"
    browser.call("Runtime.evaluate", expression=wait, awaitPromise=True)
    assert browser.value("window.hit") is None
    search(browser, "onload=alert")
    assert browser.value("document.getElementById('count').textContent") == f"1 of {len(TEXTS)}"


@pytest.mark.parametrize("width", [1280, 390])
def test_small_images_are_enlarged_pixel_by_pixel(browser, config, tmp_path, width):
    write_labels(config)
    describe(config, None, Ruler())
    page = tmp_path / "browse.html"
    page.write_text(browse.page(config, 0)[0], encoding="utf-8")
    browser.open(page, width)
    images = browser.value(
        "[...document.images].map(i => "
        "[i.src.slice(5, 15), i.clientWidth, getComputedStyle(i).imageRendering])"
    )
    assert len(images) == 20 and min(shown for _, shown, _ in images) >= 96
    rendering = {kind: how for kind, _, how in images}
    assert rendering == {"image/png;": "pixelated", "image/jpeg": "auto"}
    assert browser.value("document.documentElement.scrollWidth") <= width


def test_the_keyboard(browser, config, tmp_path):
    describe(config, ["image"], Ruler())
    page = tmp_path / "browse.html"
    page.write_text(browse.page(config, 0)[0], encoding="utf-8")
    browser.open(page, 1280)
    columns = browser.value("getComputedStyle(images).gridTemplateColumns.split(' ').length")
    assert columns > 1

    def focused():
        return browser.value(
            "document.activeElement.closest('article')?.innerText.match(/..\\.png/)[0]"
        )

    for key, code, position in [
        ("ArrowRight", 39, 0), ("ArrowRight", 39, 1), ("ArrowDown", 40, 1 + columns),
        ("ArrowLeft", 37, columns), ("ArrowUp", 38, 0), ("ArrowUp", 38, 0),
    ]:  # fmt: skip
        browser.press(key, code)
        assert focused() == IDS[position]
    press_enter(browser)
    assert browser.value("large.open") and browser.value("content.innerText").startswith("image")
    browser.press("ArrowRight", 39)
    assert browser.value("content.querySelector('h2').textContent") == IDS[1]
    browser.press("Escape", 27)
    browser.call("Runtime.evaluate", expression=NEXT_FRAME, awaitPromise=True)
    assert not browser.value("large.open") and focused() == IDS[1]
    browser.press("/", 191)
    assert browser.value("document.activeElement.id") == "words"
    search(browser, "width 10")
    press_enter(browser)
    assert focused() == IDS[9] and browser.value("count.textContent") == "1 of 10"
    search(browser, "no such word")
    browser.press("ArrowDown", 40)
    assert focused() is None
