"""Text from others: valid when it enters, printable when it is shown."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattec_jax.text import cut, printable, valid_text


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
def test_valid_text(text, expected):
    assert valid_text(text) == expected


@given(st.text(st.characters(), max_size=40))
def test_any_text_becomes_valid_once_and_stays_so(text):
    found = valid_text(text)
    found.encode("utf-8")
    assert unicodedata.is_normalized("NFC", found) and valid_text(found) == found
    assert not {unicodedata.category(c) for c in found} & {"Cc", "Cs", "Zl", "Zp"}


def test_printable():
    assert printable("a\x1b]0;title\x07\u202eb\ud83d\x9b") == (
        "a\\x1b]0;title\\x07\\u202eb\\ud83d\\x9b"
    )
    assert printable("Épée\n\tok") == "Épée\n\tok"


def test_long_text_is_cut_in_the_middle():
    text = cut("a" * 6000 + "b" * 6000, 100)
    assert text == "a" * 75 + " … (11,900 characters left out) … " + "b" * 25
    assert cut("short") == "short"
