"""The page of `captioning.browse` in a real browser: a page full of markup stays text."""

from __future__ import annotations

import pytest

from captioning import browse
from tests.captioning.hostile_page import TEXTS, hostile_data
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
    # It filters.
    browser.value("document.getElementById('words').value = 'onload=alert'")
    browser.value("document.getElementById('words').dispatchEvent(new Event('input'))")
    assert browser.value("document.getElementById('count').textContent") == f"1 of {len(TEXTS)}"
