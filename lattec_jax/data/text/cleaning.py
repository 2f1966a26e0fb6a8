"""Text cleaning as in open_clip: encodings, HTML entities, white space, case."""

from __future__ import annotations

import html
import string
from collections.abc import Callable

import ftfy

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _fix_encoding(text: str) -> str:
    """Repair wrongly decoded text, and replace HTML entities (escaped once or twice)."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text  # most descriptions; ftfy is slow
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _clean_whitespace(text: str) -> str:
    """Fix the encoding, and replace every run of white space by one space."""
    return " ".join(_fix_encoding(text).split())


def _clean_canonicalize(text: str) -> str:
    """Remove ASCII punctuation (`_` becomes a space), convert to lower case, clean white space."""
    text = _fix_encoding(text).strip().replace("_", " ").translate(_NO_PUNCTUATION)
    return " ".join(text.lower().split())


CLEANERS: dict[str, Callable[[str], str]] = {
    "lower": lambda text: _clean_whitespace(text).lower(),  # as in CLIP's training
    "whitespace": _clean_whitespace,
    "canonicalize": _clean_canonicalize,
}
