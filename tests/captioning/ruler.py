"""Ten small images of different widths, two classes, and an engine that returns the widths."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from captioning.engines import Failure, Identity, Request, Results
from configs import common
from lattec_jax.data import pseudo_labels
from lattec_jax.data.descriptions import descriptions_path, read
from lattec_jax.runtime.config import validate

CLASSES = ("cat", "dog")
IDS = [f"{i:02d}.png" for i in range(10)]
LABELS = np.array([0, 1] * 5, np.int32)
WIDTHS = [f"width {n + 1}" for n in range(10)]  # the engine's texts
pause = 0.0  # seconds for one description


class Ruler:
    """Describes images by their widths, and records the requests."""

    def __init__(self, model: str = "1", fails: Iterable[str] = ()) -> None:
        self.identity = Identity("ruler", model, "exact")
        self.requests: list[Request] = []
        self.fails = set(fails)

    def describe(self, requests: Iterable[Request]) -> Results:
        for request in requests:
            time.sleep(pause)
            self.requests.append(request)
            widths = " ".join(str(image.width) for image in request.images)
            failed = request.image_id in self.fails
            yield request, Failure("no\nruler") if failed else f"width\n {widths}"

    @property
    def requested(self) -> list[str]:
        return [request.image_id for request in self.requests]


def identity(config: ConfigDict) -> Identity:
    return Ruler().identity


def processes(config: ConfigDict) -> int:
    return 1


def load(config: ConfigDict) -> Ruler:
    return Ruler()


def make_config(directory: Path, count: int = 10) -> ConfigDict:
    """Write a set of images; return its unlocked configuration."""
    root = directory / "images"
    root.mkdir()
    for number in range(count):
        image = Image.new("L" if number % 2 else "RGB", (number + 1, 3))
        image.save(root / f"{number:02d}.png")
    (directory / "names.txt").write_text("\n".join(CLASSES))
    (directory / "weights").mkdir()
    (directory / "weights" / "model.safetensors").write_bytes(b"weights")
    config = common.get_config()
    config.artifacts = str(directory / "artifacts")
    config.weights = str(directory / "weights")
    config.dataset.update(
        {"name": "mine", "root": str(root), "class_names": str(directory / "names.txt")}
    )
    config.dataset.held_out_fraction = 0.0
    config.descriptions.engine = "ruler"
    config.descriptions.prompts.update({"image": "How wide?", "group": "How wide, all of you?"})
    return validate(config).copy_and_resolve_references().unlock()


def write_labels(config: ConfigDict, labels=LABELS, ids=tuple(IDS)) -> None:
    source = pseudo_labels.provenance(
        pseudo_labels.weights_sha256(config.weights),
        [(name,) for name in CLASSES],
        config.templates,
    )
    path = pseudo_labels.pseudo_labels_path(config, source)
    scores = np.full(len(ids), 0.5)
    pseudo_labels.write(path, ids, labels, scores, scores, source)


def texts(config: ConfigDict, kind: str) -> list[str | None]:
    return read([descriptions_path(config, kind)], [kind], IDS).texts[kind]


def write_config_file(config: ConfigDict, path: Path) -> None:
    """Write the configuration as a file for commands."""
    path.write_text(
        "from configs import common\n"
        "from captioning.engines import ENGINES\n"
        'ENGINES["ruler"] = "tests.captioning.ruler"\n'
        "def get_config(options=''):\n"
        "    config = common.get_config(options)\n"
        f"    config.artifacts = {config.artifacts!r}\n"
        f"    config.weights = {config.weights!r}\n"
        f"    config.dataset.update({config.dataset.to_dict()!r})\n"
        "    config.descriptions.engine = 'ruler'\n"
        f"    config.descriptions.prompts.update({config.descriptions.prompts.to_dict()!r})\n"
        "    return config\n"
    )
