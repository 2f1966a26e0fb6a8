"""Checkpoint directories with impossible, unknown or wrongly typed values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.runtime.errors import WeightsError
from tests.models.test_checkpoint import make_checkpoint


@pytest.fixture
def directory(tmp_path) -> Path:
    make_checkpoint().save(tmp_path / "tiny")
    return tmp_path / "tiny"


def put(directory: Path, place: str, value: Any, name: str = "config.json") -> None:
    """Set an item of a JSON file by its path, such as `model.vision.pool`."""
    path = directory / name
    content = json.loads(path.read_text())
    *parents, last = place.split(".")
    part = content
    for key in parents:
        part = part[key]
    part[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model.vision.pool", "max", "vision.pool: expected 'tok' or 'avg', found 'max'"),
        ("model.text.pool", "tok", "text.pool: expected .*'argmax'.* found 'tok'"),
        ("model.quick_gelu", "relu", "quick_gelu: expected a valid boolean, found 'relu'"),
        ("model.quick_gelu", 1, "quick_gelu: expected a valid boolean, found 1"),
        ("model.text.causal", None, "text.causal: expected a valid boolean"),
        ("model.vision.layers", 10**12, "vision.layers: expected less than or equal to 1024"),
        ("model.text.layers", -1, "text.layers: expected greater than or equal to 1"),
        ("model.vision.width", 8.0, "vision.width: expected a valid integer"),
        ("model.vision.width", True, "vision.width: expected a valid integer"),
        ("model.vision.heads", 3, "width 8 is not a multiple of the 3 heads"),
        ("model.vision.heads", 0, "vision.heads: expected greater than or equal to 1"),
        ("model.vision.patch_size", 9, "patches of 9 pixels are larger than images"),
        ("model.vision.image_size", [10**9, 8], "image_size.0.: expected less than"),
        ("model.vision.mlp_ratio", float("nan"), "mlp_ratio: expected a finite number"),
        ("model.vision.mlp_ratio", 10**400, "mlp_ratio: expected a finite number"),
        ("model.text.norm_epsilon", 0, "norm_epsilon: expected greater than 0"),
        ("model.vision.norm_epsilon", 1e12, "norm_epsilon: expected less than or equal to 0.1"),
        ("model.text.context_length", 1, "context_length: expected greater"),
        ("model.text.vocab_size", 10**12, "vocab_size: expected less"),
        ("model.text.eos_id", -1, "eos_id: expected greater"),
        ("model.text.window", 3, "text.window is not known"),
        ("model.vision", [], "vision: expected an object"),
        ("model", 3, "model: expected an object"),
        ("preprocess.resize_mode", "stretch", "resize_mode: expected 'shortest'.* 'stretch'"),
        ("preprocess.interpolation", "nearest", "interpolation: expected 'bicubic'"),
        ("preprocess.fill_color", 300, "fill_color: expected less"),
        ("preprocess.std", [0.1, 0, 1], "std.1.: expected greater than 0"),
        ("preprocess.mean", [0.1, float("inf"), 1], "mean.1.: expected a finite number"),
        ("preprocess.size", [0, 8], "size.0.: expected greater"),
        ("preprocess.size", ["8", 8], "size.0.: expected a valid integer"),
        ("tokenizer.clean", "upper", "clean: expected 'lower'"),
        ("tokenizer.clean", ["lower"], "clean: expected 'lower'"),
        ("tokenizer.pad_id", -1, "pad_id: expected greater"),
        ("tokenizer.pad_id", 100, "has 101 token ids, but the model has only 7"),
        ("tokenizer.context_length", "5", "context_length: expected a valid integer"),
        ("tokenizer", None, "tokenizer: expected an object"),
        ("source", [], "source: expected an object"),
        ("more", 1, "more is not known"),
    ],
)
def test_every_item_of_the_configuration_is_checked(directory, place, value, message):
    put(directory, place, value)
    with pytest.raises(WeightsError, match=message) as caught:
        Checkpoint.load(directory)
    assert str(directory) in str(caught.value) and len(str(caught.value)) < 2000


def test_missing_layers_are_refused_before_tensors_are_read(directory, monkeypatch):
    put(directory, "model.vision.layers", 1024)
    put(directory, "model.vision.width", 2**16)
    put(directory, "model.text.vocab_size", 2**24)
    with pytest.raises(WeightsError, match=r"tensors do not fit(.|\n)*and \d+ more") as caught:
        Checkpoint.load(directory)
    assert len(str(caught.value)) < 8000


def test_weights_that_are_not_finite_are_refused(directory):
    path = directory / "model.safetensors"
    params = safetensors.numpy.load_file(path)
    params["text/projection"][0, 1] = np.nan
    safetensors.numpy.save_file(params, path)
    with pytest.raises(WeightsError, match="NaN or infinity in text/projection"):
        Checkpoint.load(directory)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 200 + "1" + "}" * 200, "\ud83d"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_deep_json_and_broken_unicode(directory, name, text):
    (directory / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(WeightsError, match="is not JSON"):
        Checkpoint.load(directory)


def test_a_tokenizer_that_pads_to_any_length_takes_no_memory(directory):
    before = Checkpoint.load(directory).tokenizer(["one", "one two"])
    padding = {"strategy": {"Fixed": 10**13}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[pad]"}
    put(directory, "padding", padding, "tokenizer.json")
    after = Checkpoint.load(directory).tokenizer(["one", "one two"])
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model", {}, "cannot be read"),
        ("model.vocab.one", 2**31, "expected token ids below 16777216, found 2147483648"),
        ("model.vocab", {"one": 2**40}, "cannot be read"),
        ("model.vocab", {"[unk]": 1, "[start]": 2, "[end]": 6, "one": 99}, "has 100 token ids"),
        ("post_processor.special_tokens.[end].ids", [77], "has 78 token ids"),
        ("post_processor", None, "expected a tokenizer with a pre-tokenizer and a post-processor"),
        ("pre_tokenizer", None, "expected a tokenizer with a pre-tokenizer and a post-processor"),
        ("pre_tokenizer.pattern", {"Regex": "(("}, "cannot be read"),
        ("added_tokens", [3], "cannot be read"),
        ("version", [], "cannot be read"),
    ],
)
def test_wrong_tokenizers_are_user_errors(directory, place, value, message, capfd):
    put(directory, place, value, "tokenizer.json")
    with pytest.raises(WeightsError, match=message):
        Checkpoint.load(directory)
    assert capfd.readouterr().err == ""
