"""The values that `adapt` chooses from the number of images.

Each rule is stated where it is applied, and printed with what it chose. A value that the user gave
is kept, and the rules behind it use it.

    batch       the largest power of two that gives an epoch 7 batches, from 32 to 512. The paper's
                batch is 512, and its smallest set has 7 batches in an epoch.
    steps       the paper's min(2000, 50 epochs).
    warm-up     40 steps, or a tenth of a shorter run.
    α and μ     the paper's 0.99; in a run of fewer than 350 steps, which is the paper's shortest,
                0.99^(1800 / steps), so that the total decay of a prototype equals that of the
                paper's 1,800 steps on EuroSAT. `configs/demo.py` uses the same rule.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
from ml_collections import ConfigDict

from lattec_jax.methods import make_method
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.runtime import sharding
from lattec_jax.runtime.config_file import packaged_module
from lattec_jax.train_run import total_steps

MIN_BATCH, MAX_BATCH = 32, 512
BATCHES_PER_EPOCH = 7  # Oxford Pets: 3,680 images, 512 in a batch
PAPER_STEPS, SHORTEST_STEPS = 1800, 350  # on EuroSAT; on Oxford Pets: 50 epochs of 7 batches
SMALL_MODEL = 50e6  # parameters


class Choices:
    """Values of the configuration by dotted keys, and a line for each that says why."""

    def __init__(
        self, config: ConfigDict, given: Collection[str], recorded: Collection[str]
    ) -> None:
        """Start from a configuration with the keys that are given or recorded already set."""
        own = packaged_module("presets").METHODS.get(config.method.name, {})
        self.config = ConfigDict(config.to_dict())
        self.settings: dict[str, Any] = {}
        self.lines: list[str] = []
        self._fixed = {
            **dict.fromkeys(recorded, "as at the start of the run"),
            **dict.fromkeys(own, "the method's"),
            **dict.fromkeys(given, "as given"),
        }

    def choose(self, key: str, value: Any, why: str) -> Any:
        """Set a key, unless the user or the method has; return its value."""
        section, _, name = key.rpartition(".")
        if key in self._fixed:
            value, why = self.config[section][name], self._fixed[key]
        else:
            self.settings[key] = value
            self.config[section][name] = value
        self.lines.append(f"{key} = {value!r}: {why}")
        return value


def choose(
    config: ConfigDict,
    given: Collection[str],
    images: int,
    checkpoint: Checkpoint,
    recorded: Collection[str] = (),
) -> Choices:
    """Choose what the rules at the top of this file decide.

    Args:
        config: with the defaults and what the user gave.
        given: the keys that the user gave.
        images: number of readable training images.
        checkpoint: the pre-trained CLIP.
        recorded: the keys that the run has in its work directory.
    """
    choices, method = Choices(config, given, recorded), make_method(config.method)
    if not method.trains:
        return choices
    devices = sharding.make_mesh(config.compute.fsdp).size
    choices.lines.append(_device_line(devices, checkpoint))
    batch = choices.choose("train.batch_size", *_batch_size(images, devices))
    batch = min(batch, max(1, images // devices * devices))
    steps = total_steps(choices.config, method, images, batch)
    limits = f"min({config.train.max_steps:,} steps, {config.train.epochs} epochs)"
    per_epoch = images // batch
    choices.lines.append(f"steps = {steps:,}: {limits}; batches in an epoch: {per_epoch:,}")
    rate = "as given" if "train.learning_rate" in given else f"the preset {config.preset}'s"
    choices.lines.append(f"train.learning_rate = {config.train.learning_rate:g}: {rate}")
    tenth = min(config.train.warmup_steps, steps // 10)
    choices.choose("train.warmup_steps", tenth, "at most a tenth of the steps")
    if config.preset == "paper" and config.method.name == "latteclip":
        _choose_alpha_and_momentum(choices, steps)
    return choices


def _device_line(devices: int, checkpoint: Checkpoint) -> str:
    device = jax.local_devices()[0]
    parameters = sum(array.size for array in checkpoint.params.values())
    line = f"{devices} x {device.device_kind}"
    if device.platform == "cpu" and parameters > SMALL_MODEL:
        line += (
            f": no GPU or TPU was found, and a step of a model of {parameters / 1e6:.0f} million "
            "parameters is slow on a CPU; the progress bar shows the time"
        )
    return line


def _choose_alpha_and_momentum(choices: Choices, steps: int) -> None:
    value, why = choices.config.method.alpha, "the paper's"
    if 0 < steps < SHORTEST_STEPS:
        value = round(0.99 ** (PAPER_STEPS / steps), 2)
        why = f"0.99^({PAPER_STEPS} / {steps}), because the run is shorter than the paper's"
    for key in ("method.alpha", "method.momentum"):
        choices.choose(key, value, why)


def _batch_size(images: int, devices: int) -> tuple[int, str]:
    size = 2 ** (max(images // BATCHES_PER_EPOCH, 1).bit_length() - 1)
    why = f"the largest power of two with at least {BATCHES_PER_EPOCH} batches in an epoch"
    if images < MIN_BATCH:
        size, why = max(images, 2), "all images, because there are few"
    elif size < MIN_BATCH:
        size, why = MIN_BATCH, f"the minimum, {MIN_BATCH}"
    elif size > MAX_BATCH:
        size, why = MAX_BATCH, f"the paper's maximum, {MAX_BATCH}"
    if size % devices:
        size = -(-size // devices) * devices
        why += f", rounded up to a multiple of the {devices} devices"
    return size, why
