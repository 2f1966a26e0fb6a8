"""Text that comes from others: valid Unicode when it enters, printable when it is shown.

Imports no JAX.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TextIO

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Categories Cc, Zl, Zp and Cs: all of them, in every version of Unicode.
NOT_VALID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SPACES = frozenset("\t\n\v\f\r\x85\u2028\u2029")
# Line breaks, and what joins and parts letters of Persian and Indic words.
_SHOWN = frozenset("\n\t\u200c\u200d")
MAX_MESSAGE = 4000  # characters of an error message that are shown


def sanitize(text: str) -> str:
    """Return text in NFC without control characters and lone surrogates.

    A surrogate becomes U+FFFD. Tab and line breaks become a space each, other control characters
    are removed.
    """
    if NOT_VALID.search(text):
        text = NOT_VALID.sub(_valid, text)
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", text)


def _valid(match: re.Match[str]) -> str:
    character = match[0]
    if character in _SPACES:
        return " "
    return REPLACEMENT if character >= "\ud800" else ""


def escape_unprintable(text: str) -> str:
    """Return text that a terminal shows as it is: other characters as backslash escapes.

    Line breaks, tabs, joiners and non-joiners stay. Escape sequences, bidirectional overrides and
    lone surrogates do not reach the terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SHOWN else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def truncate(text: str, max_chars: int = MAX_MESSAGE) -> str:
    """Return text of at most `max_chars` characters; the middle of a longer one is left out."""
    if len(text) <= max_chars:
        return text
    mark = f" … ({len(text) - max_chars:,} characters left out) … "
    head = max_chars * 3 // 4
    return text[:head] + mark + text[len(text) - (max_chars - head) :]


def print_escaped(text: str, file: TextIO | None = None) -> None:
    """Print text that may hold names and paths, with `escape_unprintable`."""
    print(escape_unprintable(text), file=file, flush=True)
