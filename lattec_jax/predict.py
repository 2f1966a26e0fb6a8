"""Classify pictures with the model of a finished run.

    python -m lattec_jax.predict --workdir=runs/digits-latteclip-s0 pictures/*.jpg
    python -m lattec_jax.predict --workdir=... --top=3 --format=jsonl pictures/ > predictions.jsonl

Arguments are pictures or folders of pictures. A picture that cannot be read is named on standard
error and left out; the exit status is then 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from absl import flags

from lattec_jax import results, sharding, stages, workdir
from lattec_jax.config import command, from_json, parse_flags
from lattec_jax.data.folder import find_pictures
from lattec_jax.data.preprocess import Preprocess, UnreadablePicture, open_picture, picture_errors
from lattec_jax.errors import ConfigError, DataError
from lattec_jax.evaluation import class_probabilities


def pictures_at(path: Path) -> list[Path]:
    """The picture at `path`, or all below it.

    Raises:
        DataError: there are none.
    """
    if not path.exists():
        raise DataError(f"no picture or folder {path}")
    paths = sorted(find_pictures(path)) if path.is_dir() else [path]
    if not paths:
        raise DataError(f"no pictures below {path}")
    return paths


def readable(
    paths: Sequence[Path], preprocess: Preprocess, unreadable: list[Path]
) -> Iterator[tuple[Path, np.ndarray]]:
    """Each picture's evaluation pixels [S, S, 3]; the others are said and put in `unreadable`."""
    for path in paths:
        try:
            picture = open_picture(path)
            with picture_errors(path):
                pixels = preprocess.pixels(picture)
        except UnreadablePicture as error:
            unreadable.append(path)
            print(f"unreadable: {error}", file=sys.stderr)
            continue
        yield path, pixels


def main(argv: Sequence[str]) -> None:
    """The command."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "Work directory of the run.", flag_values=values)
    flags.DEFINE_integer("top", 1, "Classes to show per picture.", 1, flag_values=values)
    flags.DEFINE_enum("format", "table", ["table", "jsonl"], "Output.", flag_values=values)
    arguments = parse_flags(values, argv)[1:]
    if not values.workdir or not arguments:
        raise ConfigError(
            "usage: python -m lattec_jax.predict --workdir=DIR [--top=K] [--format=table|jsonl] "
            "PICTURE_OR_FOLDER ..."
        )
    directory = Path(values.workdir)
    config = from_json(directory / workdir.CONFIG)
    checkpoint, vectors = results.load_adapted(directory)
    class_names = checkpoint.source["class_names"]
    paths = [path for argument in arguments for path in pictures_at(Path(argument))]

    mesh = sharding.make_mesh(config.compute.fsdp)
    encoders = stages.make_encoders(config, checkpoint, mesh)
    params = sharding.put(mesh, checkpoint.params)
    frozen_params = None
    if vectors.frozen is not None:
        frozen_params = sharding.put(mesh, results.load_pretrained(config, directory).params)
    top = min(values.top, len(class_names))
    scale, width = float(checkpoint.params["logit_scale"]), max(map(len, class_names))
    unreadable: list[Path] = []
    pictures = readable(paths, checkpoint.preprocess, unreadable)
    # Full batches, so that the model is compiled for one size (and that of the last).
    while batch := list(islice(pictures, config.compute.eval_batch_size)):
        pixels = np.stack([pixels for _, pixels in batch])
        frozen = encoders.images(frozen_params, pixels) if frozen_params else None
        cosines = vectors.cosines(encoders.images(params, pixels), frozen)
        scores = class_probabilities(cosines, scale)
        for (path, _), row in zip(batch, scores, strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            if values.format == "jsonl":
                top_k = [{"class": class_names[c], "score": float(row[c])} for c in best]
                line = {"image": str(path), **top_k[0], "label": int(best[0]), "top": top_k}
                print(json.dumps(line, ensure_ascii=False))
            else:
                shown = "  ".join(f"{class_names[c]:{width}} {row[c]:6.1%}" for c in best)
                print(f"{shown}  {path}")
    if unreadable:
        sys.exit(1)


if __name__ == "__main__":
    command(main)
