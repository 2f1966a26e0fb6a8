"""Tokenizers of the Hugging Face hub against open_clip's HFTokenizer, on small ones made here."""

from __future__ import annotations

import functools
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert import hub_tokenizer
from lattec_jax.data.text.tokenizer import HubTokenizer, Tokenizer
from lattec_jax.runtime.errors import WeightsError
from tests.data import hub_tokenizers
from tests.data.text.test_tokenizer import FRAGMENTS, random_texts
from tests.openclip_models import model_cfg

SPECIAL = ["[SEP]", "[CLS]", "[PAD]", "[UNK]", "[MASK]", "<s>", "</s>", "<pad>", "<unk>", "<mask>"]
SPECIAL += ["<extra_id_0>", "▁", "a▁b", "x </s> y", "[SEP]a[SEP]", " <mask> b", "##ing", "[sep]"]


def texts(count: int, seed: int) -> list[str]:
    """Random texts, some with special tokens written out in them."""
    rng = random.Random(seed)
    some = random_texts(count, seed)
    return SPECIAL + [f"{t} {rng.choice(SPECIAL)} {t}" if rng.random() < 0.1 else t for t in some]


@functools.cache
def corpus() -> list[str]:
    """Texts to train on, of few enough characters."""
    known = set("".join(FRAGMENTS)) | {chr(code) for code in range(0x20, 0x7F)}
    return [text for text in random_texts(6000, seed=7) if set(text) <= known and len(text) < 999]


# Of the two that SentencePiece made, the quick tests read one.
KINDS = [
    pytest.param(k, marks=pytest.mark.full) if k == "xlm-v" else k for k in hub_tokenizers.KINDS
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory) -> Path:
    """A saved tokenizer of each kind."""
    return hub_tokenizers.make(kind, tmp_path_factory.mktemp(kind) / "t", corpus())


def text_cfg(kind: str) -> dict:
    """The text configuration of the kind's model."""
    return model_cfg(hub_tokenizers.KINDS[kind])["text_cfg"]


def read(config: dict, folder: Path) -> HubTokenizer:
    return hub_tokenizer.read(config, folder, "the test")


def reference(config: dict, folder: Path):
    """open_clip's tokenizer of a text configuration, its files in a folder."""
    from open_clip.tokenizer import HFTokenizer

    return HFTokenizer(
        str(folder),
        context_length=config["context_length"],
        **config.get("tokenizer_kwargs", {}),
    )


def assert_equal(ours: Tokenizer, theirs, strings: list[str]) -> None:
    found, expected = ours(strings), theirs(strings).numpy()
    assert found.dtype == np.int32
    different = [strings[row] for row in np.flatnonzero((found != expected).any(axis=1))]
    assert not different, different[:10]


@pytest.mark.parametrize("count", [800, pytest.param(5_000, marks=pytest.mark.full)])
def test_equals_open_clip(kind, folder, count):
    config = text_cfg(kind)
    strings = texts(count, seed=3)
    ours = read(config, folder)
    assert_equal(ours, reference(config, folder), strings)
    assert len(np.unique(ours(strings))) > 200  # the vocabulary is used


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
@pytest.mark.parametrize("strip", [False, True])
def test_every_cleaning_with_and_without_separator(kind, folder, clean, strip):
    config = text_cfg(kind)
    settings = {"clean": clean, "strip_sep_token": strip}
    if kind == "mt5":  # has no separator token, and open_clip fails on it
        del settings["strip_sep_token"]
    config |= {"tokenizer_kwargs": settings, "context_length": 12}
    assert_equal(
        read(config, folder),
        reference(config, folder),
        texts(500, seed=4),
    )


def test_every_length(kind, folder):
    for length in (4, 5, 16, 77):
        config = text_cfg(kind) | {"context_length": length}
        strings = ["", "a", *(" ".join(["photo"] * count) for count in range(length + 3))]
        assert_equal(read(config, folder), reference(config, folder), strings)


def test_special_tokens_of_each_kind(kind, folder):
    row = hub_tokenizer.read(text_cfg(kind), folder, "the test")("photo")[0]
    end = np.flatnonzero(row)[-1]
    if kind == "bert":  # the separator is zeroed
        assert row[0] == 2 and 3 not in row and not row[end + 1 :].any()
    elif kind == "xlm-v":
        last = row.tolist().index(2)
        assert row[0] == 0 and set(row[last + 1 :]) == {1}
    else:
        assert row[end] == 1 and row[0] > 1 and not row[end + 1 :].any()


def test_saved_is_self_contained_and_needs_no_transformers(kind, folder, tmp_path):
    ours = hub_tokenizer.read(text_cfg(kind), folder, "the test")
    settings = json.loads(json.dumps(ours.save(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    loaded = Tokenizer.load(tmp_path, settings)
    assert isinstance(loaded, HubTokenizer)
    strings = texts(500, seed=5)
    np.testing.assert_array_equal(loaded(strings), ours(strings))
    assert loaded.open_clip_settings() == ours.open_clip_settings()
    assert loaded(strings[0]).shape == (1, ours.context_length)
    assert loaded([]).shape == (0, ours.context_length)
    code = (
        "import sys, json; from pathlib import Path;"
        "sys.modules['transformers'] = sys.modules['torch'] = None;"
        "from lattec_jax.data.text.tokenizer import Tokenizer;"
        "print(Tokenizer.load(Path(sys.argv[1]), json.loads(sys.argv[2]))('a photo').tolist())"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), json.dumps(settings)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ours("a photo").tolist()


def test_exported_files_make_the_same_tokenizer(kind, folder, tmp_path):
    """What goes beside exported weights is read by open_clip's own tokenizer class."""
    config = text_cfg(kind)
    ours = read(config, folder)
    for name, text in ours.transformers_files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    exported = dict(config)
    exported["tokenizer_kwargs"] = ours.open_clip_settings()["tokenizer_kwargs"]
    assert exported["tokenizer_kwargs"] == config.get("tokenizer_kwargs", {})
    assert_equal(ours, reference(exported, tmp_path), texts(500, seed=6))
    # Files beside the weights come before the name, as in open_clip.
    beside = hub_tokenizer.read(config | {"hf_tokenizer_name": "no/such"}, tmp_path, "the test")
    np.testing.assert_array_equal(beside(SPECIAL), ours(SPECIAL))


def test_vocabulary_file_alone(tmp_path):
    """google/mt5-base has a sentencepiece model and no tokenizer.json."""
    folder = tmp_path / "raw"
    hub_tokenizers.raw_sentencepiece("mt5", folder, corpus(), 800)
    config = text_cfg("mt5")
    assert_equal(read(config, folder), reference(config, folder), texts(500, seed=9))


def test_tokens_beyond_the_models_vocabulary_are_plain_text(tmp_path):
    """T5's hundred extra tokens, where the model has no embedding for them."""
    folder = tmp_path / "raw"
    hub_tokenizers.raw_sentencepiece("mt5", folder, corpus(), 800)
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    known = hub_tokenizer.read(text_cfg("mt5"), folder, "t").vocab_size
    config = text_cfg("mt5") | {"vocab_size": known - 100}
    ours = read(config, folder)
    assert ours.vocab_size == known - 100
    assert ours("a <extra_id_7> b").max() < known - 100
    np.testing.assert_array_equal(ours("a photo"), reference(config, folder)("a photo").numpy())


def test_what_is_not_read_says_so(kind, folder, tmp_path, monkeypatch):
    config = text_cfg(kind)
    for changed in (
        {"tokenizer_kwargs": {"language": "fr"}},
        {"tokenizer_kwargs": {"tokenizer_mode": "clips"}},
        {"tokenizer_mode": "clips"},
    ):
        with pytest.raises(WeightsError, match=r"weights\.x: .*is not read"):
            hub_tokenizer.read(config | changed, folder, "weights.x")
    with pytest.raises(WeightsError, match=r"special tokens of .* alone need"):
        hub_tokenizer.read(config | {"context_length": 1}, folder, "weights.x")
    with pytest.raises(WeightsError, match="text cleaning is 'upper'"):
        hub_tokenizer.read(config | {"tokenizer_kwargs": {"clean": "upper"}}, folder, "weights.x")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    left = shutil.copytree(folder, tmp_path / "left")
    (left / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    with pytest.raises(WeightsError, match="pads and cuts on the right"):
        hub_tokenizer.read(config, left, "weights.x")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsError, match=r"pip install .*\[convert\]"):
        hub_tokenizer.read(config, folder, "weights.x")


@pytest.mark.full
def test_a_tokenizer_that_is_out_of_reach_says_so():
    """The tests' hub is offline, and its cache is empty."""
    where = r"weights\.x: .* from the hub or its cache, cannot be read.*HF_HOME"
    with pytest.raises(WeightsError, match=where):
        hub_tokenizer.read(text_cfg("bert"), None, "weights.x")
