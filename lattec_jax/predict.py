"""Classify images with the model of a finished run.

    python -m lattec_jax.predict --workdir=runs/digits-latteclip-s0 images/*.jpg
    python -m lattec_jax.predict --workdir=... --top=3 --format=jsonl images/ > predictions.jsonl
    python -m lattec_jax.predict --workdir=... --list=paths.txt --out=predictions.csv

Arguments are images, folders of images or quoted patterns; `--list` is a file with one path per
line (or separated by NUL, as from `find -print0`). Duplicate paths are classified once. `--out`
writes JSON lines or, by its file name or `--format`, CSV; the same command continues an incomplete
file. An unreadable image is reported on standard error and gets a line with an `error` (not in a
table); the exit status is then 1. Remove such a line from the file, and the same command tries that
image again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from lattec_jax.data.images.sources import files_at, is_collection
from lattec_jax.inference import prediction_files
from lattec_jax.models import run_artifacts
from lattec_jax.runtime.cli import WORKDIR, command, define_workdir, read
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.progress import progress_bar
from lattec_jax.runtime.text import escape_unprintable, print_escaped, truncate

if TYPE_CHECKING:
    from lattec_jax.inference.classifier import Classifier

ARGUMENTS = "IMAGE_OR_FOLDER ..."


def images_at(path: Path) -> list[Path]:
    """Return the image at `path`, or all images in a folder or of a pattern such as `new/*.jpg`.

    Raises:
        DataError: there are none.
    """
    if is_collection(path):
        return files_at(path)
    if not os.path.exists(path):  # False also for a name that is too long
        where = "" if path.is_absolute() else f" (looked in {Path.cwd()})"
        raise DataError(f"no image or folder {path}{where}")
    return [path]


def classify(
    classifier: Classifier,
    paths: Sequence[str],
    kind: str,
    top: int,
    write: Callable[[bytes], object],
    progress: bool,
) -> int:
    """Write a line for each image, in order. Return the number of unreadable images."""
    width = max(map(len, classifier.class_names))
    failed = 0
    with progress_bar(
        total=len(paths), desc="predicting", unit="image", disable=not progress
    ) as bar:
        predictions = classifier.stream(paths, top_k=top, on_error="record")
        for path, found in zip(paths, predictions, strict=True):
            if found.error is not None:
                failed += 1
                shown = f"{prediction_files.printable(path)}: {found.error}"
                bar.write(f"unreadable: {truncate(escape_unprintable(shown))}", file=sys.stderr)
            scored = (found.names, found.labels, found.scores, found.error)
            write(prediction_files.line(kind, path, *scored, top, width))
            bar.update()
    return failed


def to_standard_output(line: bytes) -> None:
    """Write bytes to standard output, whatever the locale."""
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_workdir(values)
    flags.DEFINE_integer("top", 1, "Classes to show per image.", 1, flag_values=values)
    flags.DEFINE_enum(
        "format",
        None,
        list(prediction_files.FORMATS),
        "Output format; default: a table, or the format of the file name of --out.",
        flag_values=values,
    )
    flags.DEFINE_string("out", "", "File to write or continue.", flag_values=values)
    flags.DEFINE_string("list", "", "File with a list of images.", flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    values, arguments = read(argv, __doc__, define_flags, WORKDIR, ARGUMENTS)
    if not (arguments or values.list):
        raise ConfigError(
            "no images to classify; expected images or folders after the flags, or "
            f"--list=FILE: python -m lattec_jax.predict --workdir={values.workdir} {ARGUMENTS}"
        )
    kind = values.format or ("table" if not values.out else _format_of(values.out))
    if values.out and kind == "table":
        raise ConfigError("--out takes --format=jsonl or csv: a table cannot be continued")
    run_artifacts.check_finished(Path(values.workdir))
    paths = prediction_files.read_list(Path(values.list)) if values.list else []
    paths += [os.fspath(p) for argument in arguments for p in images_at(Path(argument))]
    paths = list(dict.fromkeys(paths))
    # These import JAX, which --help must not wait for.
    from lattec_jax.inference.classifier import Classifier
    from lattec_jax.runtime import compilation_cache

    compilation_cache.enable()
    classifier = Classifier.load(values.workdir)
    top = min(values.top, len(classifier.class_names))
    if not values.out:
        to_standard_output(prediction_files.header(kind, top))
        progress = not sys.stdout.isatty()
        failed = classify(classifier, paths, kind, top, to_standard_output, progress)
    else:
        with prediction_files.PredictionFile(
            Path(values.out), kind, top, classifier.identity
        ) as out:
            left = [path for path in paths if path not in out.done]
            if len(left) < len(paths):
                print_escaped(
                    f"{len(paths) - len(left)} of {len(paths)} images are in {values.out}"
                )
            failed = out.failed + classify(classifier, left, kind, top, out.append, True)
        print_escaped(f"predictions of {len(paths)} images in {values.out}")
    if failed:
        count = "1 image" if failed == 1 else f"{failed} images"
        again = f"; to try again, remove the lines with an error from {values.out}"
        print_escaped(f"{count} could not be read{again if values.out else ''}", sys.stderr)
        sys.exit(1)


def _format_of(name: str) -> str:
    return "csv" if name.lower().endswith(".csv") else "jsonl"


if __name__ == "__main__":
    command(main)
