"""Untrusted text: sanitized when it is read, escaped when it is printed."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattec_jax.runtime.text import escape_unprintable, sanitize, truncate


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a cat", "a cat"),
        ("a\ud83d cat", "a\ufffd cat"),
        ("\x1b[31mred\x07", "[31mred"),
        ("one\ntwo\tthree\x00", "one two three"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u05d0\u05d1 \u200f!", "\u05d0\u05d1 \u200f!"),
        ("a\u2028b", "a b"),
    ],
)
def test_sanitize(text, expected):
    assert sanitize(text) == expected


@given(st.text(st.characters(), max_size=40))
def test_sanitizing_is_idempotent(text):
    found = sanitize(text)
    found.encode("utf-8")
    assert unicodedata.is_normalized("NFC", found) and sanitize(found) == found
    assert not {unicodedata.category(c) for c in found} & {"Cc", "Cs", "Zl", "Zp"}


def by_category(text):
    """What `sanitize` promises, by the categories of Unicode."""
    kept = ""
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs":
            kept += "\ufffd"
        elif category in ("Zl", "Zp") or character in "\t\n\v\f\r\x85":
            kept += " "
        elif category != "Cc":
            kept += character
    return unicodedata.normalize("NFC", kept)


# Special characters, which are rarely drawn otherwise.
SPECIAL = st.sampled_from(
    "\0\t\n\x1f\x7f\x85\x9f\xa0\u2028\u2029\ud800\udfffe\u0301\u0344\u1100\u1161 a"
)


@given(st.text(st.characters() | SPECIAL, max_size=40))
def test_sanitize_by_category(text):
    assert sanitize(text) == by_category(text)


@pytest.mark.full
def test_every_character():
    for start in range(0, 0x110000, 0x1000):
        text = "a".join(map(chr, range(start, start + 0x1000)))
        assert sanitize(text) == by_category(text)


def test_escape_unprintable():
    assert escape_unprintable("a\x1b]0;title\x07\u202eb\ud83d\x9b") == (
        "a\\x1b]0;title\\x07\\u202eb\\ud83d\\x9b"
    )
    assert escape_unprintable("Épée\n\tok") == "Épée\n\tok"
    for word in ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937"):
        assert escape_unprintable(word) == word


def test_long_text_is_truncated_in_the_middle():
    text = truncate("a" * 6000 + "b" * 6000, 100)
    assert text == "a" * 75 + " … (11,900 characters omitted) … " + "b" * 25
    assert truncate("short") == "short"
