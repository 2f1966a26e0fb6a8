"""Short whole runs on small folders of images, with a CLIP of one layer."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from PIL import Image

from lattec_jax import train
from lattec_jax.runtime.config import default_workdir, parse
from tests.dummy import dummy_checkpoint

CLASSES = ("cat", "dog", "bird")
COLORS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))

# Files of a run that are equal to the byte however it was interrupted, and metrics that are not.
EQUAL = ("model/model.safetensors", "classifier.safetensors")
NOT_REPEATED = ("images_per_second", "device_memory_bytes")

base_model = functools.partial(dummy_checkpoint, layers=1)


def make_images(root: Path, per_class: int, labeled: bool) -> None:
    """Noisy colored images of mixed sizes as JPEG, PNG and WebP."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for c, name in enumerate(CLASSES):
            for n in range(per_class):
                folder = root / part / (name if labeled else "")
                folder.mkdir(parents=True, exist_ok=True)
                height, width = rng.integers(12, 40, 2)
                noise = rng.integers(-40, 40, (height, width, 3))
                pixels = np.clip(np.array(COLORS[c]) + noise, 0, 255).astype(np.uint8)
                suffix = ("jpg", "png", "webp")[n % 3]
                Image.fromarray(pixels).save(folder / f"{name[0]}{n:03}.{suffix}")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


def make_inputs(directory: Path) -> None:
    """Labeled and unlabeled images, and a checkpoint."""
    make_images(directory / "labeled", 12, labeled=True)
    make_images(directory / "unlabeled", 12, labeled=False)
    base_model().save(directory / "weights")


def arguments(root: str, *extra: str) -> list[str]:
    """The command line of a short run; what begins with ":" is an option of the configuration."""
    options = ",".join(argument[1:] for argument in extra if argument.startswith(":"))
    file = "configs/folder.py" + (f":{options}" if options else "")
    return [
        "train",
        f"--config={file}",
        f"--config.dataset.name={root}",
        f"--config.dataset.root={root}",
        f"--config.dataset.class_names={root}/classes.txt",
        "--config.weights=weights",
        "--config.descriptions.engine=pixels",
        "--config.train.batch_size=16",
        "--config.train.max_steps=6",
        "--config.train.learning_rate=1e-3",
        "--config.train.warmup_steps=2",
        "--config.checkpoint_every=2",
        "--config.log_every=1",
        "--config.image_cache.max_side=24",
        *(argument for argument in extra if not argument.startswith(":")),
    ]


def run(*args: str) -> dict:
    """`results.json` of a run."""
    train.main(arguments(*args))
    config, _ = parse(arguments(*[a for a in args if not a.startswith("--workdir")]))
    named = [a.split("=", 1)[1] for a in args if a.startswith("--workdir")]
    directory = Path(named[0]) if named else default_workdir(config)
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


def model_of(directory: Path) -> dict[str, np.ndarray]:
    """The saved parameters of a run."""
    return safetensors.numpy.load_file(directory / "model/model.safetensors")


def classifier_of(directory: Path) -> dict[str, np.ndarray]:
    """The saved class weights of a run."""
    return safetensors.numpy.load_file(directory / "classifier.safetensors")


def logged(directory: Path) -> list[dict]:
    """The lines of a run's log."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def repeated(directory: Path) -> list[list[tuple[str, float]]]:
    """The lines of a run's log, in order, without the metrics that depend on the time."""
    lines = logged(directory)
    return [[item for item in line.items() if item[0] not in NOT_REPEATED] for line in lines]


def assert_equal(one: Path, other: Path) -> None:
    """Two runs left the same model and class weights, to the byte, and the same log."""
    for file in EQUAL:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    assert repeated(one) == repeated(other)
