"""The documents, and their blocks with the comments before them (docs/documentation.md).

python -m tests.docs.pages      # prints how many blocks the tests run, and why not the others
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("sh", "bash")
PROGRAMS = (*SHELL, "python")
NO_PROGRAMS = ("text", "json", "bibtex")
_ITEM = re.compile(
    r"^<!-- (?P<kind>not run|run with|fails with|before):\s+(?P<text>.*?)\s*-->$"
    r"|^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block, or a hidden script before one."""

    where: str  # file and line
    language: str
    code: str  # as it is run
    not_run: str = ""  # the reason
    fails_with: str = ""  # what it prints; then its exit status is not 0
    hidden: bool = False

    @property
    def file(self) -> str | None:
        """The path of a Python block that is a file: its first line is a comment with the path."""
        found = re.match(r"# ([\w/]+\.py)\n", self.code)
        return found[1] if self.language == "python" and found else None


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in their order.

    Raises:
        ValueError: a comment without a block after it, or one that has no effect on it.
    """
    text = page.read_text(encoding="utf-8")
    found, comments, end = [], [], 0
    for item in _ITEM.finditer(text):
        where = f"{page.name}:{text.count(chr(10), 0, item.start()) + 1}"
        kind = item["kind"]
        between = text[end : item.start()].strip()
        if comments and (between or kind == "before"):
            raise ValueError(f"{where}: expected a block after the comment, found {between!r}")
        if kind == "before":
            found.append(Block(where, "sh", item["text"], hidden=True))
        elif kind:
            comments.append((kind, item["text"]))
        else:
            found.append(_block(where, item["language"], item["code"], comments))
            comments = []
        end = item.end()
    if comments:
        raise ValueError(f"{page.name}: expected a block after {comments}")
    return found


def _block(where: str, language: str, code: str, comments: list[tuple[str, str]]) -> Block:
    not_run = fails_with = ""
    for kind, text in comments:
        if kind == "run with":
            old, arrow, new = text.partition(" => ")
            if not arrow or old not in code:
                raise ValueError(f"{where}: expected {old!r} in the block, and a text after =>")
            code = code.replace(old, new)
        elif kind == "not run":
            not_run = text
        else:
            fails_with = text
    return Block(where, language, code, not_run, fails_with)


def main() -> None:
    """Print the counts."""
    programs = [
        block
        for page in PAGES
        for block in blocks(page)
        if block.language in PROGRAMS and not block.hidden
    ]
    skipped = Counter(block.not_run for block in programs if block.not_run)
    print(f"{len(programs)} shell and Python blocks, {len(programs) - skipped.total()} are run")
    for reason, count in skipped.most_common():
        print(f"{count} not: {reason}")


if __name__ == "__main__":
    main()
