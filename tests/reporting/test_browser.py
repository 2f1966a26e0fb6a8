"""The report in a browser, from a file: loading, layout, contrast, keyboard and printing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from lattec_jax.reporting.page import render
from tests.reporting.browser import CHROMIUM, Browser
from tests.reporting.example import example, hostile

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no chromium or google-chrome; for example apt-get install chromium",
    ),
]
SCROLL_WIDTH = "document.documentElement.scrollWidth"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Reports with and without labels, and one of many classes."""
    runs = {
        "labeled": example(),
        "unlabeled": example(labeled=False),
        "many": example(classes=397, images=20_000),
        "hostile": hostile(),
    }
    found = {}
    for name, run in runs.items():
        found[name] = tmp_path_factory.mktemp("page") / f"{name}.html"
        found[name].write_text(render(run), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("name", ["labeled", "unlabeled", "many", "hostile"])
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_the_page_loads_without_errors_and_without_requests(browser, pages, name, width, scheme):
    browser.open(pages[name], width, scheme)
    images = browser.value("[...document.images].map(i => [i.naturalWidth, i.alt])")
    assert len(images) >= 18
    assert all(width > 0 and alt for width, alt in images)
    assert browser.value(SCROLL_WIDTH) <= width
    assert browser.value("window.hit === undefined && document.scripts.length === 0")
    errors = (
        "Log.entryAdded",
        "Runtime.exceptionThrown",
        "Runtime.consoleAPICalled",
        "Page.javascriptDialogOpening",
    )
    assert [e for e in browser.events if e.get("method") in errors] == []
    requests = [e for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    urls = [e["params"]["request"]["url"] for e in requests]
    assert {url for url in urls if not url.startswith("data:")} == {pages[name].as_uri()}
    assert browser.value("document.compatMode") == "CSS1Compat"


def test_both_color_schemes_have_contrast(browser, pages):
    """WCAG 2.2 AA: 4.5 to 1 for text, measured on the colors that the browser computed."""
    measure = """
      (() => {
        const light = c => {
          const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
          return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2];
        };
        const page = light(getComputedStyle(document.body).backgroundColor);
        return ['p', 'a', 'figcaption', 'caption', 'dt', 'small', 'h2'].map(name => {
          const text = light(getComputedStyle(document.querySelector('main ' + name + ', ' + name))
            .color);
          return [name, (Math.max(text, page) + 0.05) / (Math.min(text, page) + 0.05)];
        });
      })()"""
    backgrounds = set()
    for scheme in ("light", "dark"):
        browser.open(pages["labeled"], 1200, scheme)
        assert all(ratio >= 4.5 for _, ratio in browser.value(measure))
        backgrounds.add(browser.value("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_all_links_and_tables_are_reachable_by_keyboard(browser, pages):
    browser.open(pages["labeled"], 360)
    active = "document.activeElement"
    browser.press("Tab", 9)
    assert browser.value(f"{active}.className") == "skip"
    assert browser.value(f"{active}.getBoundingClientRect().left") >= 0  # it is visible
    browser.press("Tab", 9)
    first = browser.value(f"{active}.getAttribute('href')")
    assert first == "#health"
    seen = set()
    for _ in range(60):
        seen.add(browser.value(f"{active}.getAttribute('href') || {active}.ariaLabel"))
        browser.press("Tab", 9)
    regions = browser.value("[...document.querySelectorAll('.scroll')].map(e => e.ariaLabel)")
    assert regions and set(regions) <= seen  # a wide table can be scrolled
    targets = browser.value(
        "[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.hash))"
    )
    assert targets and all(targets)


def test_headings_tables_and_charts_have_labels(browser, pages):
    browser.open(pages["labeled"], 1200)
    levels = browser.value("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert browser.value("[...document.querySelectorAll('th')].every(h => h.scope)")
    assert browser.value("[...document.querySelectorAll('table')].every(t => t.caption)")
    charts = "[...document.querySelectorAll('svg')]"
    assert browser.value(f"{charts}.every(s => s.ariaHidden || s.role && s.ariaLabel)")
    assert browser.value("document.documentElement.lang") == "en"
    ids = browser.value("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_the_page_can_be_printed(browser, pages):
    browser.open(pages["labeled"], 1200)
    printed = browser.call("Page.printToPDF", printBackground=False)["data"]
    assert len(printed) > 10_000
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="")
