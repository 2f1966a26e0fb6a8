"""The README and the pages agree with each other and with the code: links, commands, settings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lattec_jax.commands import COMMANDS
from lattec_jax.runtime.config_schema import allowed
from tests.docs.pages import NO_PROGRAMS, PAGES, PROGRAMS, ROOT, blocks

INCLUDED = ("benchmarks/README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
LINKED = [*PAGES, *(ROOT / name for name in INCLUDED)]
COPIED = (
    "pip install -e . && python -m lattec_jax.train --config=configs/demo.py",
    "pip install -e '.[test]' && python -m pytest",
)
MISSPELLED = {"train.batchsize"}  # on purpose: what happens then
GENERATED = {"commands.md", "configuration.md", "python_api.md"}  # with more headings in the site


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def entries(nav: list) -> Iterator[str]:
    for entry in nav:
        for target in entry.values():
            if isinstance(target, list):
                yield from entries(target)
            else:
                yield target


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", without_blocks(page), re.M):
        text = unicodedata.normalize("NFKC", re.sub(r"[`*]", "", heading)).lower()
        found.add(re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text)))
    return found


def test_the_navigation_names_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    included = {"benchmarks.md", "changelog.md", "contributing.md", "notebook.md", "security.md"}
    pages = {page.name for page in PAGES if page.parent == ROOT / "docs"}
    found = list(entries(nav))
    assert len(found) == len(set(found))
    assert set(found) == pages | included


@pytest.mark.parametrize("page", LINKED, ids=by_name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        if anchor and file.name not in GENERATED:
            assert anchor in anchors(file), f"{page.name}: {file.name} has no heading #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_blocks_name_their_language_and_reasons(page):
    for block in blocks(page):
        language = block.language.partition(" ")[0]
        assert language in (*PROGRAMS, *NO_PROGRAMS), f"{block.where}: language {language!r}"
        assert block.language in PROGRAMS or not (block.not_run or block.fails_with)
    assert not re.search(r"^ +```", page.read_text(encoding="utf-8"), re.M), "an indented block"


@pytest.mark.parametrize("page", LINKED, ids=by_name)
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(
        r"python -m ((?:lattec_jax|captioning|convert|benchmarks)(?:\.[a-z_]+)*)\b", text
    ):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), f"{page.name}: {module}"
    for name in re.findall(r"(?:python -m lattec_jax|lattec-jax) ([a-z]\w+)", text):
        assert name in COMMANDS, f"{page.name}: python -m lattec_jax has no command {name}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_settings_exist(page):
    for key in re.findall(r"--config\.([a-z_][\w.]*[a-z0-9])", page.read_text(encoding="utf-8")):
        assert allowed(key) or key in MISSPELLED, f"{page.name}: config.{key} is not a setting"


def test_the_readme_is_short_and_has_the_two_commands():
    """.ci/run greps for them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    lines = text.splitlines()
    for command in COPIED:
        assert lines.count(command) == 1


def test_a_comment_belongs_to_the_block_after_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- run with: a => b -->\n```sh\necho a\n```\n", encoding="utf-8")
    assert blocks(page)[0].code == "echo b\n"
    page.write_text("<!-- not run: why -->\nProse.\n```sh\necho a\n```\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.md:3: expected a block after the comment"):
        blocks(page)
    page.write_text("<!-- run with: x => b -->\n```sh\necho a\n```\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected 'x' in the block"):
        blocks(page)
