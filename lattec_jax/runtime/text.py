"""Untrusted text: sanitized when it is read, escaped when it is printed. Imports no JAX."""

from __future__ import annotations

import re
import unicodedata
from typing import TextIO

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# All characters of the Unicode categories Cc, Zl, Zp and Cs.
INVALID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SPACES = frozenset("\t\n\v\f\r\x85\u2028\u2029")
# Line breaks, and the joiners and non-joiners of Persian and Indic words.
_UNESCAPED = frozenset("\n\t\u200c\u200d")
MAX_MESSAGE_CHARS = 4000  # of an error message on the terminal


def sanitize(text: str) -> str:
    """Return text in NFC without control characters and lone surrogates.

    A surrogate becomes U+FFFD. Tab and line breaks become a space each, other control characters
    are removed.
    """
    if INVALID.search(text):
        text = INVALID.sub(_replacement, text)
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", text)


def _replacement(match: re.Match[str]) -> str:
    character = match[0]
    if character in _SPACES:
        return " "
    return REPLACEMENT if character >= "\ud800" else ""


def escape_unprintable(text: str) -> str:
    """Return text with unprintable characters as backslash escapes.

    Line breaks, tabs, joiners and non-joiners stay. Escape sequences, bidirectional overrides and
    lone surrogates do not reach the terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in _UNESCAPED else c.encode("unicode_escape").decode()
        for c in text
    )


def truncate(text: str, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Return at most `max_chars` characters of a text; the middle of a longer one is omitted."""
    if len(text) <= max_chars:
        return text
    mark = f" … ({len(text) - max_chars:,} characters omitted) … "
    head = max_chars * 3 // 4
    return text[:head] + mark + text[len(text) - (max_chars - head) :]


def print_escaped(text: str, file: TextIO | None = None) -> None:
    """Print text that may contain names and paths, with unprintable characters escaped."""
    print(escape_unprintable(text), file=file, flush=True)
