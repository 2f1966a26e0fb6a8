"""The key is found in full, in part and encoded; other texts are unchanged."""

from __future__ import annotations

import base64

import pytest

from lattec_jax.runtime.api_key import KeyFilter

KEY = "sk-proj-Zq83hVb2LmX0yTrW5nKc"


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        KEY.swapcase(),
        " ".join(KEY),
        KEY.replace("V", "V\u200b\n"),
        KEY[:14],
        KEY[-13:],
        KEY.encode().hex(),
        KEY.encode().hex(":").upper(),
        "".join(f"%{byte:02x}" for byte in KEY.encode()),
        KEY.replace("-", "%2D"),
        "".join(chr(ord(c) + 0xFEE0) for c in KEY),  # full width
        *(base64.b64encode(b"x" * n + KEY.encode() + b"y" * 3).decode() for n in range(4)),
        base64.urlsafe_b64encode(KEY[5:25].encode()).decode(),
    ],
)
def test_the_key_in_other_forms(text):
    known = KeyFilter(KEY)
    assert known.contains_key(text)
    assert known.contains_key(f"it is {text}, is it not?")
    masked = known.mask(f"it is {text}, is it not?")
    assert "***" in masked and not known.contains_key(masked)
    assert masked.startswith("it is ") and masked.endswith("is it not?")


@pytest.mark.parametrize(
    "text",
    ["", "a red square", "sk-proj-", KEY[:9], "the keys of a piano, in a row " * 100, "***", "%%%"],
)
def test_other_texts(text):
    known = KeyFilter(KEY)
    assert not known.contains_key(text)
    assert known.mask(text) == text


def test_several_positions():
    assert KeyFilter(KEY).mask(f"a {KEY} b {KEY[:14]} c") == "a *** b *** c"


def test_short_keys():
    assert KeyFilter("").mask("any") == "any" and not KeyFilter("").contains_key("any")
    assert KeyFilter("-----").mask("a ----- b") == "a *** b"
    assert not KeyFilter("q8w3e7r5t6z7u8i").contains_key("q8w3e7r5t6z7u8i")
    secret = KeyFilter("q8w3e7r5t6z7u8i9")
    assert secret.contains_key("it begins with q8w3e7r5t6z7")
    assert not secret.contains_key("it begins with q8w3e7r5t6z")


@pytest.mark.parametrize(
    "key, text",
    [
        ("lm-studio", "a portrait in a studio, LM Studio"),
        ("not-needed", "no more is needed"),
        ("placeholder", "a toothbrush holder, a placeholder"),
        ("sk-no-key-required", "no key required, registration required"),
        ("local-server", "a server in a rack, the local server"),
        ("dog", "a dog"),
    ],
)
def test_placeholders_of_local_servers_are_no_secrets(key, text):
    known = KeyFilter(key)
    assert not known.contains_key(text) and not known.contains_key(f"{text} {key}")
    assert known.mask(f"Bearer {key} is wrong") == "Bearer *** is wrong"
