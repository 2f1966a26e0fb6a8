from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.word_level import word_tokenizer
from lattec_jax.models.checkpoint import Checkpoint, expected_shapes
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.runtime.errors import WeightsError
from tests.no_room import no_room

CONFIG = CLIPConfig(
    embed_dim=6,
    vision=VisionConfig(width=8, layers=2, heads=2, patch_size=4, image_size=(8, 12)),
    text=TextConfig(width=4, layers=1, heads=1, context_length=5, vocab_size=7, layer_scale=0.1),
)


def make_checkpoint(config: CLIPConfig = CONFIG, seed: int = 0) -> Checkpoint:
    rng = np.random.default_rng(seed)
    return Checkpoint(
        config=config,
        params={
            name: np.asarray(rng.normal(size=shape), np.float32)
            for name, shape in expected_shapes(config).items()
        },
        tokenizer=word_tokenizer(["one", "two", "three"], context_length=5),
        preprocess=Preprocess(size=(8, 12), mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25)),
        source={"model": "tiny", "note": "naïve"},
    )


def test_round_trip_is_equal_to_the_bit(tmp_path):
    checkpoint = make_checkpoint()
    checkpoint.save(tmp_path / "deep" / "tiny")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["tiny"]
    names = sorted(path.name for path in (tmp_path / "deep" / "tiny").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]

    loaded = Checkpoint.load(tmp_path / "deep" / "tiny")
    assert (loaded.config, loaded.preprocess) == (checkpoint.config, checkpoint.preprocess)
    assert loaded.source == checkpoint.source
    assert loaded.params.keys() == checkpoint.params.keys()
    for name, array in checkpoint.params.items():
        assert loaded.params[name].tobytes() == array.tobytes(), name
        assert loaded.params[name].shape == array.shape
    np.testing.assert_array_equal(loaded.tokenizer("one two"), checkpoint.tokenizer("one two"))


def test_sha256_is_that_of_the_file_before_and_after_saving(tmp_path):
    checkpoint = make_checkpoint()
    checkpoint.save(tmp_path / "tiny")
    content = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    assert checkpoint.sha256 == hashlib.sha256(content).hexdigest()
    assert Checkpoint.load(tmp_path / "tiny").sha256 == checkpoint.sha256
    assert make_checkpoint(seed=1).sha256 != checkpoint.sha256


def test_transposed_views_are_written_as_they_read(tmp_path):
    checkpoint = make_checkpoint()
    name = "visual/projection"
    expected = checkpoint.params[name].copy()
    checkpoint.params[name] = np.asfortranarray(expected)
    checkpoint.save(tmp_path / "tiny")
    np.testing.assert_array_equal(Checkpoint.load(tmp_path / "tiny").params[name], expected)


def test_an_older_checkpoint_is_replaced_and_an_empty_directory_filled(tmp_path):
    (tmp_path / "tiny").mkdir()
    for seed in (0, 1):
        make_checkpoint(seed=seed).save(tmp_path / "tiny")
        assert Checkpoint.load(tmp_path / "tiny").sha256 == make_checkpoint(seed=seed).sha256
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_permissions_are_those_of_any_new_directory(tmp_path):
    (tmp_path / "plain").mkdir()
    make_checkpoint().save(tmp_path / "tiny")
    assert (tmp_path / "tiny").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"config.json": "{}"}])
def test_other_directories_are_not_overwritten(tmp_path, content):
    target = tmp_path / "tiny"
    target.mkdir()
    for name, text in content.items():
        (target / name).write_text(text)
    with pytest.raises(WeightsError):
        make_checkpoint().save(target)
    assert {path.name: path.read_text() for path in target.iterdir()} == content


def test_a_checkpoint_with_other_files_in_it_is_not_overwritten(tmp_path):
    make_checkpoint().save(tmp_path / "tiny")
    (tmp_path / "tiny" / "notes.txt").write_text("mine")
    with pytest.raises(WeightsError, match=r"notes\.txt.*choose a new directory"):
        make_checkpoint(seed=1).save(tmp_path / "tiny")
    assert Checkpoint.load(tmp_path / "tiny").sha256 == make_checkpoint().sha256


def test_a_file_of_that_name_is_refused(tmp_path):
    (tmp_path / "tiny").write_text("")
    with pytest.raises(WeightsError, match="is a file"):
        make_checkpoint().save(tmp_path / "tiny")


def test_a_failed_save_leaves_no_files(tmp_path):
    make_checkpoint().save(tmp_path / "tiny")
    with no_room(500), pytest.raises(OSError, match="File too large"):
        make_checkpoint(seed=1).save(tmp_path / "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert Checkpoint.load(tmp_path / "tiny").sha256 == make_checkpoint().sha256


def test_all_mismatched_tensors_are_listed(tmp_path):
    make_checkpoint().save(tmp_path / "tiny")
    path = tmp_path / "tiny" / "model.safetensors"
    params = safetensors.numpy.load_file(path)
    del params["logit_scale"], params["visual/blocks/1/mlp/fc/bias"]
    params["visual/projection"] = params["visual/projection"].T.copy()
    params["text/token_embedding"] = np.zeros((9, 4), np.float32)
    params["text/extra"] = params["visual/blocks/2/ln_1/scale"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(params, path)
    with pytest.raises(WeightsError) as caught:
        Checkpoint.load(tmp_path / "tiny")
    message = str(caught.value)
    for line in (
        "6 tensors",
        "unknown: text/extra (3,)",
        "unknown: visual/blocks/2/ln_1/scale (3,)",
        "missing: logit_scale ()",
        "missing: visual/blocks/1/mlp/fc/bias (32,)",
        "wrong shape: visual/projection expected (8, 6), found (6, 8)",
        "wrong shape: text/token_embedding expected (7, 4), found (9, 4)",
    ):
        assert line in message


def test_parts_that_do_not_fit_each_other_are_refused(tmp_path):
    checkpoint = make_checkpoint()
    checkpoint.tokenizer = word_tokenizer(["one"], context_length=9)
    with pytest.raises(WeightsError, match=r"context length of the tokenizer.*expects 5, found 9"):
        checkpoint.save(tmp_path / "tiny")
    checkpoint.tokenizer = word_tokenizer(["one", "two", "three", "four"], context_length=5)
    with pytest.raises(WeightsError, match="8 token ids, but the model has only 7"):
        checkpoint.save(tmp_path / "tiny")
    checkpoint = make_checkpoint()
    checkpoint.preprocess = Preprocess(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(WeightsError, match="image size"):
        checkpoint.save(tmp_path / "tiny")
    checkpoint = make_checkpoint()
    checkpoint.params["logit_scale"] = np.float16(1).reshape(())
    with pytest.raises(WeightsError, match="float16"):
        checkpoint.save(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_damaged_directories_are_user_errors(tmp_path):
    with pytest.raises(WeightsError, match=r"no config\.json"):
        Checkpoint.load(tmp_path / "nowhere")
    make_checkpoint().save(tmp_path / "tiny")
    config = tmp_path / "tiny" / "config.json"
    content = json.loads(config.read_text())
    for damaged, message in (
        ("{", "not JSON"),
        ("[]", "expected an object, found"),
        (json.dumps({**content, "format": "other"}), "found 'other'"),
        (json.dumps({"format": content["format"]}), "model is missing; preprocess is missing"),
        (
            json.dumps({**content, "model": {}}),
            r"model: embed_dim is missing; .*convert the weights again",
        ),
        (json.dumps({**content, "preprocess": {}}), r"preprocess: size is missing"),
        (json.dumps({**content, "tokenizer": {}}), r"tokenizer: clean is missing"),
    ):
        config.write_text(damaged)
        with pytest.raises(WeightsError, match=message):
            Checkpoint.load(tmp_path / "tiny")
    config.write_text(json.dumps(content))
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(WeightsError, match="not a readable"):
        Checkpoint.load(tmp_path / "tiny")
    os.remove(tmp_path / "tiny" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        Checkpoint.load(tmp_path / "tiny")


def test_shapes_follow_the_flags():
    shapes = expected_shapes(CONFIG)
    assert shapes["visual/patch_embedding/kernel"] == (48, 8)
    assert shapes["visual/positional_embedding"] == (1 + 2 * 3, 8)
    assert shapes["visual/blocks/1/attn/qkv/kernel"] == (8, 24)
    assert shapes["visual/blocks/1/mlp/proj/kernel"] == (32, 8)
    assert shapes["text/blocks/0/layer_scale_2"] == (4,)
    assert shapes["text/projection"] == (4, 6)
    assert shapes["logit_scale"] == ()
    assert "visual/blocks/0/layer_scale_1" not in shapes


def test_imports_neither_jax_nor_torch():
    code = (
        "import sys, lattec_jax.models.checkpoint, lattec_jax.data.text.tokenizer;"
        "sys.exit(bool({'jax', 'torch', 'open_clip'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
