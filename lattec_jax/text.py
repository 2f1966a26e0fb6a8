"""Text that comes from others: valid Unicode when it enters, printable when it is shown.

Imports no JAX.
"""

from __future__ import annotations

import unicodedata
from typing import TextIO

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_MESSAGE = 4000  # characters of an error message that are shown


def valid_text(text: str) -> str:
    """Return text in NFC without control characters and lone surrogates.

    A surrogate becomes U+FFFD. Tab and line breaks become a space each, other control characters
    are removed.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "".join(_valid(character) for character in text)
    return unicodedata.normalize("NFC", kept)


def _valid(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":
        return REPLACEMENT
    if category == "Cc":
        return " " if character in "\t\n\v\f\r\x85" else ""
    return " " if category in ("Zl", "Zp") else character


def printable(text: str) -> str:
    """Return text that a terminal shows as it is: other characters as backslash escapes.

    Line breaks and tabs stay. Escape sequences, bidirectional overrides and lone surrogates do not
    reach the terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def cut(text: str, max_chars: int = MAX_MESSAGE) -> str:
    """Return text of at most `max_chars` characters; the middle of a longer one is left out."""
    if len(text) <= max_chars:
        return text
    mark = f" … ({len(text) - max_chars:,} characters left out) … "
    head = max_chars * 3 // 4
    return text[:head] + mark + text[len(text) - (max_chars - head) :]


def show(text: str, file: TextIO | None = None) -> None:
    """Print text that may hold names and paths, as `printable`; None: to standard output."""
    print(printable(text), file=file, flush=True)
