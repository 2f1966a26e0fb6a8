"""Look at images, collages, descriptions and pseudo-labels: one self-contained HTML page.

    python -m captioning.browse --config=configs/eurosat.py [--out=browse.html] [--limit=500]

The page needs no server and no network; it is filtered by class and by words. It shows `limit`
images spread evenly over the training set (0: all), 10 to 20 KB each: a thumbnail, the collage of
its group, and what the configured engine said, merged or not yet.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from captioning.collage import single_image
from captioning.engines import ENGINES, UNFIT, engine_module
from captioning.shards import recorded
from captioning.tasks import labels_file, make_tasks
from lattec_jax.data import datasets, pseudo_labels
from lattec_jax.data.datasets.dataset import Dataset
from lattec_jax.data.descriptions import Record, descriptions_path, records
from lattec_jax.data.images.preprocess import UnreadableImage, open_image
from lattec_jax.runtime.cli import command, read_config
from lattec_jax.runtime.config import artifacts_dir
from lattec_jax.runtime.errors import ConfigError, DataError, WeightsError
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.text import print_escaped

THUMBNAIL, COLLAGE = 160, 240  # pixels of the long side
TEMPLATE = Path(__file__).with_name("browse.html")


def page(config: ConfigDict, limit: int) -> tuple[str, int]:
    """The page, and the number of images on it.

    Args:
        config: a resolved configuration.
        limit: images at most; 0: all.

    Raises:
        ConfigError: a negative limit, or an engine that is not configured.
        DataError: nothing has been described.
    """
    if limit < 0:
        raise ConfigError(f"--limit: expected 0 or more, found {limit}")
    dataset = datasets.load(config)
    texts = {kind: _answers(config, kind, dataset) for kind in config.descriptions.prompts}
    if not any(texts.values()):
        raise DataError(
            f"nothing of {dataset.name} has been described by the engine "
            f"{config.descriptions.engine} in {artifacts_dir(config) / 'descriptions'}; describe "
            "first: python -m captioning.describe --config=..."
        )
    labels = _pseudo_labels(config, dataset)
    count = len(dataset.train.ids)
    rows = np.unique(np.linspace(0, count - 1, min(limit or count, count)).round().astype(int))
    paths = dict(zip(dataset.train.ids, dataset.train.paths, strict=True))
    cards = [_card(dataset, row, paths, texts, labels) for row in tqdm(rows.tolist(), unit="image")]
    data = {"name": dataset.name, "classes": list(dataset.class_names), "images": cards}
    return render(data), len(cards)


def render(data: dict[str, Any]) -> str:
    """The page of `data`: the set's name, its classes, and `_card` of each image."""
    # Nothing in the data can end the script element that carries it.
    escaped = json.dumps(data, allow_nan=False)
    for character in "<>&":
        escaped = escaped.replace(character, f"\\u{ord(character):04x}")
    template = TEMPLATE.read_text(encoding="utf-8")
    _, _, script = template.rpartition("<script>")
    digest = hashlib.sha256(script.partition("</script>")[0].encode()).digest()
    policy = f"sha256-{base64.b64encode(digest).decode()}"
    return template.replace("__HASH__", policy).replace("__DATA__", escaped)


def _answers(config: ConfigDict, kind: str, dataset: Dataset) -> dict[str, Record]:
    """Image -> text or failure for the present images, prompts and engine, merged or not.

    A file of another captioner, without keys, is taken as it is.
    """
    path = descriptions_path(config, kind)
    others = {r.image: r for r in records(path) if not r.key} if path.exists() else {}
    if config.descriptions.engine not in ENGINES:
        return others
    identity = engine_module(config).identity(config)
    try:
        tasks = make_tasks(config, [kind], dataset, identity)[kind].tasks
    except (DataError, WeightsError):  # no pseudo-labels, without which this kind has no question
        return others
    found = recorded(path)
    return others | {task.image: found[task.key] for task in tasks if task.key in found}


def _pseudo_labels(
    config: ConfigDict, dataset: Dataset
) -> dict[str, tuple[str, float | None, float | None]]:
    """Image -> class, score and margin; empty where they have not been made."""
    try:
        path, source = labels_file(config, dataset)
    except (ConfigError, WeightsError):  # the page does without them
        return {}
    if not path.exists():
        return {}
    found = pseudo_labels.read(path, None, source)
    columns = zip(found.ids, found.labels, found.scores, found.margins, strict=True)
    return {i: (dataset.class_names[n], _finite(s), _finite(m)) for i, n, s, m in columns}


def _finite(value: float) -> float | None:
    """None for what JSON has no number for."""
    return float(value) if math.isfinite(value) else None


def _card(
    dataset: Dataset,
    row: int,
    paths: dict[str, Path],
    texts: dict[str, dict[str, Record]],
    labels: dict[str, tuple[str, float | None, float | None]],
) -> dict[str, Any]:
    """What the page shows of one image."""
    train = dataset.train
    image = train.ids[row]
    found = [by_image[image] for by_image in texts.values() if image in by_image]
    members = next((record.members for record in found if record.members), ())
    shown = [paths[member] for member in members if member in paths]
    label, score, margin = labels.get(image, (None, None, None))
    return {
        "id": image,
        "thumbnail": _thumbnail([train.paths[row]], THUMBNAIL),
        "collage": _thumbnail(shown, COLLAGE) if shown else None,
        "members": list(members),
        "texts": [{"kind": r.kind, "text": r.text, "error": r.error} for r in found],
        "label": label,
        "score": score,
        "margin": margin,
        "truth": None if train.labels is None else dataset.class_names[train.labels[row]],
    }


def _thumbnail(paths: Sequence[Path], side: int) -> str | None:
    """A JPEG data URI of an image, or of the collage of several; None: unreadable."""
    try:
        image = single_image([open_image(path) for path in paths])
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    except (UnreadableImage, *UNFIT):
        return None
    image.info.clear()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def define_flags(values: flags.FlagValues) -> None:
    """The flags of the command."""
    flags.DEFINE_string("out", "browse.html", "The page.", flag_values=values)
    flags.DEFINE_integer("limit", 500, "Images at most; 0: all.", flag_values=values)


def main(argv: Sequence[str]) -> None:
    """The command."""
    config, values = read_config(argv, __doc__, define_flags)
    content, count = page(config, values.limit)
    path = Path(values.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    print_escaped(f"{count} images, {path.stat().st_size / 1e6:.1f} MB -> {path}")


if __name__ == "__main__":
    command(main)
