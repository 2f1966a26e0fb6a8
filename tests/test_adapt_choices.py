"""What `adapt` chooses from the number of images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lattec_jax.adaptation import choices
from lattec_jax.runtime.config import parse


def pretrained() -> Any:
    """The part of a checkpoint that matters."""
    return SimpleNamespace(params={"w": np.zeros(20_000, np.float32)})


def configured(*overrides: str, options: str = ""):
    file = f"configs/folder.py:{options}" if options else "configs/folder.py"
    return parse(["adapt", f"--config={file}", *overrides])[0]


SEVEN = "the largest power of two with at least 7 batches in an epoch"
MAXIMUM = "the paper's maximum, 512"


@pytest.mark.parametrize(
    ("images", "batch", "steps", "alpha", "warmup", "reason"),
    [
        (18_900, 512, 1800, 0.99, 40, MAXIMUM),  # EuroSAT: the paper's values
        (3_680, 512, 350, 0.99, 35, SEVEN),  # Oxford Pets
        (1_000, 128, 350, 0.99, 35, SEVEN),  # the demo's images and batch
        (300, 32, 450, 0.99, 40, SEVEN),
        (100, 32, 150, 0.89, 15, "the minimum, 32"),
        (20, 20, 50, 0.7, 5, "all images, because there are few"),
        (100_000, 512, 2000, 0.99, 40, MAXIMUM),
    ],
)
def test_the_rules(images, batch, steps, alpha, warmup, reason):
    found = choices.choose(configured(), (), images, pretrained())
    assert found.settings["train.batch_size"] == batch
    assert f"steps = {steps:,}: min(2,000 steps, 50 epochs)" in "\n".join(found.lines)
    assert found.settings["method.alpha"] == found.settings["method.momentum"] == alpha
    assert found.settings["train.warmup_steps"] == warmup
    assert "train.microbatch_size" not in found.settings  # the default, "auto"
    assert found.lines[0] == "1 x cpu"
    assert f"train.batch_size = {batch}: {reason}" in found.lines
    assert parse(["x", "--config=configs/folder.py", *(
        f"--config.{key}={value}" for key, value in found.settings.items()
    )])  # fmt: skip


def test_the_demos_rule():
    config = configured("--config.train.max_steps=60")
    found = choices.choose(config, ("train.max_steps",), 1000, pretrained())
    assert found.settings["method.alpha"] == 0.74  # as in configs/demo.py
    given = ("train.max_steps", "method.alpha", "train.batch_size")
    config = configured("--config.train.max_steps=60", "--config.train.batch_size=64")
    found = choices.choose(config, given, 1000, pretrained())
    assert "method.alpha" not in found.settings and "train.batch_size" not in found.settings
    assert "train.batch_size = 64: as given" in found.lines
    assert "train.learning_rate = 1e-07: the preset paper's" in found.lines
    assert "method.alpha = 0.99: as given" in found.lines


def test_a_run_in_progress_keeps_its_values():
    config = configured("--config.train.batch_size=36", "--config.method.alpha=0.5")
    recorded = ("train.batch_size", "method.alpha")
    found = choices.choose(config, (), 1000, pretrained(), recorded)
    assert not set(recorded) & found.settings.keys()
    assert "train.batch_size = 36: as at the start of the run" in found.lines


def test_other_methods_and_presets_keep_their_values():
    reclip = choices.choose(configured(options="method=reclip"), (), 1000, pretrained())
    assert not reclip.settings
    assert "train.batch_size = 64: the method's" in reclip.lines
    released = configured("--config.train.epochs=2", options="preset=released_code")
    found = choices.choose(released, (), 1000, pretrained())
    assert not {"method.alpha", "method.momentum"} & found.settings.keys()
    zero_shot = choices.choose(configured(options="method=zero_shot"), (), 100, pretrained())
    assert not zero_shot.settings and not zero_shot.lines


def test_a_large_model_on_a_cpu_is_said_to_be_slow():
    checkpoint = pretrained()
    checkpoint.params["w"] = np.zeros(60_000_000, np.int8)
    line = choices.choose(configured(), (), 1000, checkpoint).lines[0]
    assert line.startswith("1 x cpu: no GPU or TPU was found") and "60 million" in line
