"""Write one self-contained HTML page of images, collages, descriptions and pseudo-labels.

    python -m captioning.browse --config=configs/eurosat.py [--limit=500] [--out=page.html]
    python -m captioning.browse --workdir=runs/pets

The page needs no server and no network; it can be filtered by class and by words. It shows `limit`
images (0: all), evenly spaced in the training set, 10 to 30 KB each: a thumbnail, the collage of
the image's group, and the descriptions of the configured engine, merged or not. By default it is
written beside them, to `<artifacts>/<dataset>/descriptions/<engine>-<model>-<digest>.html`: other
engines, models, prompts, groups, classes and weights have pages of their own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from captioning.collage import data_uri, single_image
from captioning.engines import ENGINES, REQUEST_ERRORS, engine_module
from captioning.shards import read_records
from captioning.tasks import labels_file, make_tasks
from lattec_jax.data import datasets, pseudo_labels
from lattec_jax.data.datasets.dataset import Dataset
from lattec_jax.data.descriptions import Record, descriptions_path, records
from lattec_jax.data.images.preprocess import UnreadableImage, open_image
from lattec_jax.runtime import run_directory
from lattec_jax.runtime.cli import (
    WORKDIR,
    asks_for_help,
    command,
    define_workdir,
    read,
    read_config,
)
from lattec_jax.runtime.config import artifacts_dir, load_run_config
from lattec_jax.runtime.errors import ConfigError, DataError, WeightsError
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.progress import progress_bar
from lattec_jax.runtime.text import print_escaped

MAX_SIDE = 240  # pixels of a thumbnail or a collage
# An image of at most so many pixels is stored as PNG, which the page enlarges pixel by pixel: the
# artifacts of JPEG would be visible.
MAX_PNG_SIDE = 96
TEMPLATE = Path(__file__).with_name("browse.html")


def page(config: ConfigDict, limit: int) -> tuple[str, str]:
    """Return the page, and what it shows: "500 of 1,000 images".

    `limit`: show at most so many images; 0: all.

    Raises:
        ConfigError: a negative limit, or an engine without a model.
        DataError: there are no descriptions.
    """
    if limit < 0:
        raise ConfigError(f"--limit: expected 0 or more, found {limit}")
    dataset = datasets.load(config)
    descriptions = {
        kind: _descriptions(config, kind, dataset) for kind in config.descriptions.prompts
    }
    if not any(descriptions.values()):
        raise DataError(
            f"there are no descriptions of {dataset.name} by the engine "
            f"{config.descriptions.engine} in {artifacts_dir(config) / 'descriptions'}; describe "
            "first: python -m captioning.describe --config=..."
        )
    labels = _pseudo_labels(config, dataset)
    count = len(dataset.train.ids)
    indices = np.unique(np.linspace(0, count - 1, min(limit or count, count)).round().astype(int))
    paths = dict(zip(dataset.train.ids, dataset.train.paths, strict=True))
    cards = [
        _card(dataset, index, paths, descriptions, labels)
        for index in progress_bar(indices.tolist(), desc="thumbnails", unit="image")
    ]
    data = {"name": dataset.name, "classes": list(dataset.class_names), "images": cards}
    shown = f"{count:,} images"
    if len(cards) < count:
        shown = f"{len(cards):,} of {shown} (--limit=0 shows all)"
    return render(data), shown


def render(data: dict[str, Any]) -> str:
    """Render the page from the data set's name, its classes, and `_card` of each image."""
    # Escaped so that nothing in the data can end the script element that contains it.
    escaped = json.dumps(data, allow_nan=False)
    for character in "<>&":
        escaped = escaped.replace(character, f"\\u{ord(character):04x}")
    template = TEMPLATE.read_text(encoding="utf-8")
    _, _, script = template.rpartition("<script>")
    digest = hashlib.sha256(script.partition("</script>")[0].encode()).digest()
    policy = f"sha256-{base64.b64encode(digest).decode()}"
    return template.replace("__HASH__", policy).replace("__DATA__", escaped)


def _descriptions(config: ConfigDict, kind: str, dataset: Dataset) -> dict[str, Record]:
    """Return image -> record for the configured images, prompts and engine, merged or not.

    A file of other software, without keys, or of a Python function is used as it is.
    """
    path = descriptions_path(config, kind)
    found = list(records(path)) if path.exists() else []
    if config.descriptions.engine not in ENGINES:
        return {record.image: record for record in found}
    without_key = {record.image: record for record in found if not record.key}
    identity = engine_module(config).identity(config)
    try:
        tasks = make_tasks(config, [kind], dataset, identity)[kind].tasks
    except (DataError, WeightsError):  # this kind needs pseudo-labels, and there are none
        return without_key
    by_key = read_records(path)
    return without_key | {task.image: by_key[task.key] for task in tasks if task.key in by_key}


def _pseudo_labels(config: ConfigDict, dataset: Dataset) -> dict[str, tuple[str, float, float]]:
    """Return image -> class, score and margin; empty if there are no pseudo-labels."""
    try:
        path, source = labels_file(config, dataset)
    except (ConfigError, WeightsError):  # the page leaves them out
        return {}
    if not path.exists():
        return {}
    found = pseudo_labels.read(path, None, source)
    columns = zip(found.ids, found.labels, found.scores, found.margins, strict=True)
    return {i: (dataset.class_names[n], float(s), float(m)) for i, n, s, m in columns}


def _card(
    dataset: Dataset,
    index: int,
    paths: dict[str, Path],
    descriptions: dict[str, dict[str, Record]],
    labels: dict[str, tuple[str, float, float]],
) -> dict[str, Any]:
    """Return what the page shows of one image."""
    train = dataset.train
    image = train.ids[index]
    found = [by_image[image] for by_image in descriptions.values() if image in by_image]
    members = next((record.members for record in found if record.members), ())
    shown = [paths[member] for member in members if member in paths]
    label, score, margin = labels.get(image, (None, None, None))
    return {
        "id": image,
        "thumbnail": _thumbnail([train.paths[index]]),
        "collage": _thumbnail(shown) if shown else None,
        "members": list(members),
        "texts": [{"kind": r.kind, "text": r.text, "error": r.error} for r in found],
        "label": label,
        "score": score,
        "margin": margin,
        "truth": None if train.labels is None else dataset.class_names[train.labels[index]],
    }


def _thumbnail(paths: Sequence[Path]) -> str | None:
    """Return a data URI of an image, or of the collage of several; None: unreadable."""
    try:
        image = single_image([open_image(path) for path in paths])
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    except (UnreadableImage, *REQUEST_ERRORS):
        return None
    kind = "png" if max(image.size) <= MAX_PNG_SIDE else "jpeg"
    return data_uri(image, kind, quality=80)


def page_path(config: ConfigDict) -> Path:
    """Return the default path of the page. It depends on all settings that decide which texts and
    pseudo-labels are shown."""
    settings = config.descriptions
    engine = settings.engine
    identity = engine_module(config).identity(config) if engine in ENGINES else None
    shown = [
        identity,
        {
            kind: (text, descriptions_path(config, kind).name)
            for kind, text in settings.prompts.items()
        },
        (settings.seed, config.dataset.class_names, config.weights, config.templates),
    ]
    digest = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:8]
    model = re.sub(r"[^\w.+]+", "-", identity.model)[:60].strip("-.") if identity else ""
    name = "-".join(filter(None, (engine, model, digest)))
    return artifacts_dir(config) / "descriptions" / f"{name}.html"


def check_uses_descriptions(workdir: Path, config: ConfigDict) -> None:
    """Raise DataError for a run that used no descriptions: those of its configured engine, which
    may be the default, would be of other runs."""
    path = workdir / run_directory.RESULTS
    used = tuple(config.method.texts) != ("class",)
    if used and path.exists():
        from lattec_jax.runtime import schemas

        advice = "restore the run's own file"
        results = schemas.read(path, schemas.DescriptionCounts, DataError, advice)
        used = results.get("descriptions", {}) is not None
    if not used:
        raise DataError(
            f"the run in {workdir} was trained on the class names alone, without descriptions. To "
            "train with descriptions, use a new work directory: adapt with --describe=..., or run "
            "python -m captioning.describe and then python -m lattec_jax.train"
        )


def define_flags(values: flags.FlagValues) -> None:
    define_workdir(values, "Work directory of a run, whose configuration replaces --config.")
    flags.DEFINE_string(
        "out", "", "Path of the page; default: beside the descriptions.", flag_values=values
    )
    flags.DEFINE_integer("limit", 500, "Maximum number of images; 0: all.", flag_values=values)


def main(argv: Sequence[str]) -> None:
    if any(re.match(r"--?workdir\b", argument) for argument in argv) and not asks_for_help(argv):
        values, _ = read(argv, __doc__, define_flags, WORKDIR)
        config = load_run_config(Path(values.workdir) / run_directory.CONFIG)
        check_uses_descriptions(Path(values.workdir), config)
    else:
        config, values = read_config(argv, __doc__, define_flags)
    content, shown = page(config, values.limit)
    path = Path(values.out) if values.out else page_path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    print_escaped(f"{shown}, {path.stat().st_size / 1e6:.1f} MB; open it in a browser:\n{path}")


if __name__ == "__main__":
    command(main)
