"""Pre-training of the tiny CLIP, and the shipped checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import configs.demo
from lattec_jax.data.glyphs import describe_image
from lattec_jax.demo import pretrain, pretrain_loop
from lattec_jax.demo.rendering import HELD_OUT_FONTS, TRAINING_FONTS
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.clip import define, initial_params
from lattec_jax.models.config import CLIPConfig

SHIPPED = Path(pretrain.__file__).parent / "tiny_clip"


@pytest.fixture
def narrow_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one layer in each tower, which compiles quickly."""
    whole = pretrain_loop.model_config

    def narrow(vocab_size: int) -> CLIPConfig:
        config = whole(vocab_size)
        return dataclasses.replace(
            config,
            vision=dataclasses.replace(config.vision, layers=1, width=32, heads=1),
            text=dataclasses.replace(config.text, layers=1, width=32, heads=1),
        )

    monkeypatch.setattr(pretrain_loop, "model_config", narrow)


def run(out: Path, monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """Run the command with 30 steps of 32 images."""
    monkeypatch.setattr(pretrain_loop, "IMAGES", images)
    monkeypatch.setattr(pretrain_loop, "HELD_OUT_IMAGES", images // 10)
    monkeypatch.setattr(pretrain_loop, "BATCH_SIZE", 32)
    pretrain.main(["pretrain", f"--out={out}", "--steps=30"])


@pytest.mark.usefixtures("narrow_model")
def test_a_loadable_directory_is_written(tmp_path: Path, monkeypatch, capsys) -> None:
    """Without training steps, which take long to compile: see the next test."""

    def untrained(rendered, tokenizer, config, steps, batch_size, seed) -> tuple:
        assert (len(rendered.labels), steps, batch_size) == (50, 30, 32)
        return initial_params(config, seed), [3.5]

    monkeypatch.setattr(pretrain_loop, "pretrain", untrained)
    run(tmp_path / "clip", monkeypatch, 50)
    shown = capsys.readouterr().out
    assert "last loss 3.500" in shown
    assert shown.endswith(f"use it by --config.weights={tmp_path / 'clip'}\n")
    found = Checkpoint.load(tmp_path / "clip")
    assert found.source["steps"] == 30
    assert found.config.vision.image_size == (32, 32)


@pytest.mark.full
def test_a_few_steps_lower_the_loss_and_a_loadable_directory_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, train = [], pretrain_loop.pretrain

    def recorded(*arguments: object) -> tuple:
        found = train(*arguments)
        losses.extend(found[1])
        return found

    monkeypatch.setattr(pretrain_loop, "pretrain", recorded)
    run(tmp_path / "clip", monkeypatch, 200)
    assert np.mean(losses[-9:]) < np.mean(losses[:9]) - 0.2
    found = Checkpoint.load(tmp_path / "clip")
    assert found.source["steps"] == 30
    assert found.config.vision.image_size == (32, 32)


def test_captions_are_of_three_kinds() -> None:
    rendered = pretrain_loop.render(TRAINING_FONTS, 10, seed=0, drop=0.3)
    for label, (name, both, strokes) in zip(rendered.labels, rendered.captions, strict=True):
        assert name == f"a photo of a {pretrain_loop.CLASS_NAMES[label]}."
        assert both == f"{name[:-1]}, {strokes}"


@pytest.mark.full
def test_the_shipped_one_recognizes_held_out_fonts() -> None:
    held_out = pretrain_loop.render(HELD_OUT_FONTS, 300, seed=11, drop=0.0)
    clip = Checkpoint.load(SHIPPED)
    accuracy = pretrain_loop.evaluate(define(clip.config), clip.params, clip.tokenizer, held_out)
    assert accuracy["images"] > 0.85
    assert accuracy["descriptions"] > 0.6


def test_the_shipped_one_is_small_and_the_demo_uses_it() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2.5e6
    config = configs.demo.get_config()
    assert Path(config.weights) == SHIPPED
    assert config.templates == (pretrain_loop.TEMPLATE,)


def test_the_shipped_tokenizer_knows_the_engines_words() -> None:
    from sklearn.datasets import load_digits

    held_out = pretrain_loop.render(HELD_OUT_FONTS, 100, seed=11, drop=0.0)
    tokenizer = Checkpoint.load(SHIPPED).tokenizer
    texts = [caption for captions in held_out.captions for caption in captions]
    for image in load_digits().images[:100]:
        pixels = pretrain_loop.Image.fromarray((image * 15.9375).astype(np.uint8))
        texts.append(describe_image(pixels))
    unknown = 1
    assert not (tokenizer(texts) == unknown).any()
