"""Rules of a tokenizer file that would make a text grow without bound."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from lattec_jax.data.text.tokenizer import Tokenizer
from lattec_jax.data.text.word_level import word_tokenizer
from lattec_jax.runtime.errors import WeightsError


@pytest.fixture
def saved(tmp_path):
    """A tokenizer's settings, its folder, and its content."""
    settings = word_tokenizer(["a", "cat"], 8).save(tmp_path)
    return settings, tmp_path, json.loads((tmp_path / "tokenizer.json").read_text())


def load(saved, **changed: object) -> Tokenizer:
    settings, folder, content = saved
    text = json.dumps(content | changed)
    Path(folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return Tokenizer.load(folder, settings)


def replace(pattern: dict[str, str], content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def normalizers(*steps: dict) -> dict:
    return {"type": "Sequence", "normalizers": list(steps)}


DOUBLED = replace({"String": "a"}, "aa")
CHARSMAP = base64.b64encode((0).to_bytes(4, "little") + b"a" * 1000 + b"\0").decode()
TWICE = [{"Sequence": {"id": "A", "type_id": 0}}] * 2
TEMPLATE = {"type": "TemplateProcessing", "single": TWICE, "pair": TWICE, "special_tokens": {}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"normalizer": normalizers(*[DOUBLED] * 30)}, "a text may become 1.074e.09 times"),
        ({"normalizer": normalizers(*[replace({"Regex": ""}, "b")] * 10)}, "1024 times"),
        ({"normalizer": normalizers(*[{"type": "Lowercase"}] * 64)}, "65 steps, more than 64"),
        ({"normalizer": normalizers(normalizers(*[DOUBLED] * 30))}, "a text may become"),
        ({"normalizer": replace({"String": "a"}, "a" * 101)}, "more than 100 characters"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 101}}, "more than 100 characters"),
        ({"normalizer": {"type": "Grow"}}, "normalizer: expected one of .* found 'Grow'"),
        ({"normalizer": {"pattern": {}}}, "normalizer: expected one of .* found None"),
        ({"normalizer": {"type": "Replace"}}, "expected the rules of a known tokenizer"),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}},
            "1000 times as long",
        ),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False}] * 20,
                }
            },
            "a text may become",
        ),
        ({"post_processor": TEMPLATE}, "expected the text once"),
        ({"decoder": {"type": "CTC"}}, "decoder: expected one of"),
    ],
)
def test_rules_that_grow_or_are_not_known_are_refused(changed, message, saved):
    with pytest.raises(WeightsError, match=message) as caught:
        load(saved, **changed)
    assert "tokenizer.json: expected the rules of a known tokenizer" in str(caught.value)


def test_a_key_that_stands_twice_is_refused(saved):
    settings, folder, content = saved
    normalizer = json.dumps(normalizers(*[DOUBLED] * 30))
    text = json.dumps(content)[:-1] + f', "normalizer": {normalizer}, "normalizer": null}}'
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(WeightsError, match="a key twice"):
        Tokenizer.load(folder, settings)


def test_usual_rules_are_read(saved):
    steps = [
        {"type": "NFKC"},
        {"type": "Lowercase"},
        replace({"Regex": r"\s+"}, " "),
        *[replace({"String": sign}, "") for sign in "!?,.;"],
    ]
    found = load(saved, normalizer=normalizers(*steps))
    assert found("A  CAT!").tolist() == load(saved)("a cat").tolist()
