"""FGVC Aircraft (Maji et al., 2013) in the layout of its archive, which has no split file.

    $LATTECLIP_DATA_DIR/fgvc_aircraft/images/0034309.jpg     config.dataset.root, .images
    $LATTECLIP_DATA_DIR/fgvc_aircraft/variants.txt           a class name a line
    $LATTECLIP_DATA_DIR/fgvc_aircraft/images_variant_train.txt, ..._val.txt, ..._test.txt

A line of the lists is an image and its class name, "0034309 707-320". "train" and "val" are the
unlabeled training images; their labels serve the oracle and analysis only.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lattec_jax.data.datasets.class_names import spoken
from lattec_jax.data.datasets.coop import PROTOCOL
from lattec_jax.data.datasets.dataset import Dataset, Split
from lattec_jax.data.datasets.layout import Layout, Row
from lattec_jax.data.datasets.problems import collect
from lattec_jax.runtime.errors import DataError, short_repr
from lattec_jax.runtime.safe_read import read_text

VARIANTS = "variants.txt"
LISTS = {part: f"images_variant_{part}.txt" for part in ("train", "val", "test")}


def read_fgvc(config: ConfigDict) -> Dataset:
    """The data set of `config.dataset`.

    Raises:
        DataError: the folder, lists or images are missing, or a list is not one; all that is
            wrong in one message.
    """
    settings = config.dataset
    layout = Layout(settings)
    variants: list[str] = []
    path = layout.file(VARIANTS, "list of classes")
    if path is not None:
        with collect(layout.problems):
            variants = [line.strip() for line in _read(path).splitlines() if line.strip()]
    parts: dict[str, list[Row]] = {}
    for part, name in LISTS.items():
        path = layout.file(name, "list of images")
        if path is not None:
            with collect(layout.problems):
                parts[part] = _read_list(path, variants)
    layout.check_images([row[0] for rows in parts.values() for row in rows], "the lists")
    layout.refuse_problems([VARIANTS, *LISTS.values()])
    lists = {part: str(layout.root / name) for part, name in LISTS.items()}
    trained = f"{lists['train']} and {lists['val']}"
    return Dataset(
        settings.name,
        tuple(spoken(name, settings.name_spaces) for name in variants),
        Split.of(parts["train"] + parts["val"], layout.images, trained),
        Split.of(parts["test"], layout.images, lists["test"]),
        PROTOCOL,
        names_source=str(layout.root / VARIANTS),
        places=(
            ("image folder", layout.images),
            *(("list", layout.root / name) for name in (VARIANTS, *LISTS.values())),
        ),
    )


def _read(path: Path) -> str:
    try:
        return read_text(path, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error


def _read_list(path: Path, variants: list[str]) -> list[Row]:
    """The rows of a list. Without variants, which are a problem of their own, all labels are 0."""
    labels = {name: label for label, name in enumerate(variants)}
    rows = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        image, _, name = line.strip().partition(" ")
        if not name or "/" in image or (labels and name not in labels):
            raise DataError(
                f"{path}, line {number}: expected an image and one of the {len(variants)} class "
                f"names of {VARIANTS}, such as '0034309 707-320', found {short_repr(line)}"
            )
        rows.append((f"{image}.jpg", labels.get(name, 0), name))
    return rows
