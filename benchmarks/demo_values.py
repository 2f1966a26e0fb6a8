"""Measure gains on the demo's training images with its α, μ and number of steps, and others.

    python -m benchmarks.demo_values [--out=runs/demo_values] [--seeds=3] [--steps=60]

The labels of the training images are read for this measurement only; the test images are not used.
Prints Markdown: the gain over zero-shot in points of top-1 on the 1,000 training images, mean of
the seeds, with true and with shuffled descriptions. Every run is a work directory below --out; the
same command resumes unfinished runs.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from captioning.tasks import labels_file
from lattec_jax import Classifier
from lattec_jax.data import datasets, pseudo_labels
from lattec_jax.runtime.cli import command, read
from lattec_jax.runtime.config import parse
from lattec_jax.train import describe
from lattec_jax.train_loop import train

CONFIG = "configs/demo.py"


class Setting(NamedTuple):
    """The hyperparameters that are varied."""

    steps: int
    alpha: float
    momentum: float


SETTINGS = (
    Setting(60, 0.74, 0.74),  # the demo's
    Setting(60, 0.30, 0.74),
    Setting(120, 0.50, 0.86),
    Setting(120, 0.30, 0.86),
    Setting(120, 0.86, 0.99),
)


def measure(out: Path, setting: Setting, seed: int, shuffle: bool) -> tuple[float, float]:
    """Run the demo; return top-1 (%) on the training images before and after."""
    argv = [
        "train",
        f"--config={CONFIG}",
        f"--config.seed={seed}",
        f"--config.artifacts={out / 'artifacts'}",
        f"--config.descriptions.shuffle={shuffle}",
        f"--config.method.alpha={setting.alpha}",
        f"--config.method.momentum={setting.momentum}",
        f"--config.train.max_steps={setting.steps}",
        f"--config.train.epochs={setting.steps}",  # max_steps decides
    ]
    config, _ = parse(argv)
    texts = "shuffled" if shuffle else "true"
    name = f"{setting.steps}-{setting.alpha}-{setting.momentum}-{texts}-s{seed}"
    with contextlib.redirect_stdout(io.StringIO()):
        train(config, out / name, CONFIG, describe)
    dataset = datasets.load(config)
    images, true = dataset.train, dataset.train.labels
    path, source = labels_file(config, dataset)
    zero_shot = pseudo_labels.read(path, images.ids, source).labels
    found = [p.label for p in Classifier.load(out / name).predict(images.paths)]
    return 100 * float(np.mean(zero_shot == true)), 100 * float(np.mean(found == true))


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    steps = sorted({str(setting.steps) for setting in SETTINGS}, key=int)
    flags.DEFINE_string("out", "runs/demo_values", "Directory of the runs.", flag_values=values)
    flags.DEFINE_integer("seeds", 3, "Seeds per setting.", 1, flag_values=values)
    flags.DEFINE_multi_enum(
        "steps", steps, steps, "Numbers of steps; repeat the flag.", flag_values=values
    )


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    values, _ = read(argv, __doc__, define_flags)
    out = Path(values.out)
    # Runs share compiled programs.
    jax.config.update("jax_compilation_cache_dir", str(Path(out, "compiled").absolute()))
    print("| steps | α | μ | true descriptions | shuffled |")
    print("|---|---|---|---|---|")
    for setting in SETTINGS:
        if str(setting.steps) in values.steps:
            cells = [str(value) for value in setting]
            for shuffle in (False, True):
                pairs = [measure(out, setting, seed, shuffle) for seed in range(values.seeds)]
                zero_shot, adapted = np.mean(pairs, axis=0)
                cells.append(f"{adapted - zero_shot:+.1f}")
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nZero-shot, the frozen pseudo-labels: {zero_shot:.1f}% on the training images.")


if __name__ == "__main__":
    command(main)
