"""FGVC Aircraft (Maji et al., 2013) in the layout of its archive, which has no split file.

    $LATTECLIP_DATA_DIR/fgvc_aircraft/images/0034309.jpg     config.dataset.root, .images
    $LATTECLIP_DATA_DIR/fgvc_aircraft/variants.txt           one class name per line
    $LATTECLIP_DATA_DIR/fgvc_aircraft/images_variant_train.txt, ..._val.txt, ..._test.txt

A line of the lists is an image and its class name, "0034309 707-320". "train" and "val" are the
unlabeled training images; their labels are used by the oracle and for analysis only.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lattec_jax.data.datasets.class_names import for_template
from lattec_jax.data.datasets.coop import PROTOCOL
from lattec_jax.data.datasets.dataset import Dataset, Entry, Split
from lattec_jax.data.datasets.error_messages import collect_errors
from lattec_jax.data.datasets.file_locator import FileLocator
from lattec_jax.data.datasets.text_files import text_lines
from lattec_jax.runtime.errors import DataError, short_repr

VARIANTS = "variants.txt"
LISTS = {part: f"images_variant_{part}.txt" for part in ("train", "val", "test")}


def read_fgvc(config: ConfigDict) -> Dataset:
    """Read the data set that `config.dataset` describes.

    Raise DataError with all problems in one message: what is missing, and malformed lists.
    """
    settings = config.dataset
    files = FileLocator(settings)
    variants: list[str] = []
    if path := files.find_file(VARIANTS, "list of classes"):
        with collect_errors(files.problems):
            variants = [line for line in text_lines(path) if line]
    parts: dict[str, list[Entry]] = {}
    for part, name in LISTS.items():
        if path := files.find_file(name, "list of images"):
            with collect_errors(files.problems):
                parts[part] = _read_list(path, variants)
    images = [image for entries in parts.values() for image, _, _ in entries]
    files.check_images(images, "the lists")
    files.raise_problems([VARIANTS, *LISTS.values()])
    lists = {part: str(files.root / name) for part, name in LISTS.items()}
    train_source = f"{lists['train']} and {lists['val']}"
    return Dataset(
        settings.name,
        tuple(for_template(name, settings.name_spaces) for name in variants),
        Split.from_entries(parts["train"] + parts["val"], files.images, train_source),
        Split.from_entries(parts["test"], files.images, lists["test"]),
        PROTOCOL,
        names_source=str(files.root / VARIANTS),
        locations=(
            ("image folder", files.images),
            *(("list", files.root / name) for name in (VARIANTS, *LISTS.values())),
        ),
    )


def _read_list(path: Path, variants: list[str]) -> list[Entry]:
    """Return the entries of a list. Labels are 0 if the class names could not be read."""
    labels = {name: label for label, name in enumerate(variants)}
    entries = []
    for number, line in enumerate(text_lines(path), 1):
        if not line:
            continue
        image, _, name = line.partition(" ")
        if not name or "/" in image or (labels and name not in labels):
            raise DataError(
                f"{path}, line {number}: expected an image and one of the {len(variants)} class "
                f"names of {VARIANTS}, such as '0034309 707-320', found {short_repr(line)}"
            )
        entries.append((f"{image}.jpg", labels.get(name, 0), name))
    return entries
