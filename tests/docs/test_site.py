"""The built site: strict, complete, and without a request to another host."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lattec_jax.commands import COMMANDS
from lattec_jax.runtime.config_schema import SCHEMA
from tests.docs.pages import ROOT
from tests.reporting.browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        importlib.util.find_spec("mkdocstrings") is None, reason="needs pip install -e '.[docs]'"
    ),
]
in_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or google-chrome; for example apt-get install chromium"
)
ADDRESSES = {"src", "srcset", "data", "poster", "background"}
WIDTHS = {"index": 1280, "methods": 390, "configuration": 390, "python_api": 1280, "demo": 390}


class Requests(HTMLParser):
    """The addresses that a browser requests for a page; links to click on are not among them."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ADDRESSES or (tag in ("link", "image", "use") and name.endswith("href")):
                self.found.append(value or "")
            if name == "style":
                self.found += re.findall(r"url\(([^)]+)\)", value or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={directory}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_no_page_names_a_file_of_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        found = Requests(page.read_text(encoding="utf-8")).found
        assert found, page
        outside = [address for address in found if re.match(r"\s*['\"]?(\w+:)?//", address)]
        assert outside == [], f"{page.name}: {outside}"
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        named = re.findall(r"url\(\s*['\"]?([^)'\"]+)|@import\s+['\"]([^'\"]+)", text)
        assert not [n for n in named if re.match(r"(https?:)?//", n[0] or n[1])], style


def test_generated_pages_are_complete(site):
    text = (site / "configuration.html").read_text(encoding="utf-8")
    assert all(f"<code>{key}</code>" in text for key in SCHEMA)
    text = (site / "commands.html").read_text(encoding="utf-8")
    assert all(f"python -m {module} --help" in text for module in COMMANDS.values())
    assert text.count("Print this help and exit.") == len(COMMANDS)
    text = (site / "python_api.html").read_text(encoding="utf-8")
    names = ("Classifier", "Prediction", "runtime.errors.DataError", "methods.base.Method")
    assert all(f'id="lattec_jax.{name}"' in text for name in names)
    assert not any("<!-- not run" in p.read_text(encoding="utf-8") for p in site.glob("*.html"))


@in_browser
@pytest.mark.parametrize("name", WIDTHS)
def test_a_page_loads_from_files_alone_and_fits(site, browser, name):
    browser.open(site / f"{name}.html", WIDTHS[name])
    sent = [e for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    urls = {event["params"]["request"]["url"] for event in sent}
    assert urls and all(url.startswith(("data:", "blob:", site.as_uri())) for url in urls)
    failed = ("Network.loadingFailed", "Runtime.exceptionThrown")
    assert [event for event in browser.events if event.get("method") in failed] == []
    assert browser.value("document.documentElement.scrollWidth") <= WIDTHS[name]
    assert browser.value("[...document.images].every(i => i.naturalWidth > 0)")


@in_browser
def test_equations_are_rendered(site, browser):
    source = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    browser.open(site / "methods.html", 1280)
    displayed = browser.value("document.querySelectorAll('.katex-display').length")
    assert displayed == source.count("$$") // 2
    assert browser.value("document.querySelectorAll('.katex-error').length") == 0
    assert "\\frac" not in browser.value("document.querySelector('article').innerText")


@in_browser
def test_search_works_in_a_page_that_is_opened_as_a_file(site, browser):
    browser.open(site / "index.html", 1280)
    browser.value(
        "(() => { const box = document.querySelector('.md-search__input'); box.focus();"
        " box.value = 'microbatch'; box.dispatchEvent(new Event('keyup', {bubbles: true})); })()"
    )
    end = time.monotonic() + 30
    while not (
        found := browser.value("document.querySelectorAll('.md-search-result__item').length")
    ):
        assert time.monotonic() < end, "no search result"
        time.sleep(0.2)
    assert found
