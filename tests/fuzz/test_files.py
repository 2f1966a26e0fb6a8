"""Class lists, split files, description files and images: read correctly, or refused.

The tests decide by independent rules what is valid: valid input must give the expected values, and
invalid input must raise a user error that names the invalid item.
"""

from __future__ import annotations

import io
import json
import unicodedata
import warnings

import numpy as np
import pytest
from hypothesis import assume, event
from hypothesis import strategies as st
from PIL import Image

from lattec_jax.data import datasets, descriptions
from lattec_jax.data.images.preprocess import (
    Preprocess,
    UnreadableImage,
    image_errors,
    open_image,
)
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.text import sanitize
from tests.fuzz.tiers import inputs

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="|_"),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with eight images, and a directory for the files that refer to them."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "set" / "images").mkdir(parents=True)
    for n in range(8):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(root / "set" / "images" / f"{n}.png")
    return root


def read(*arguments: str):
    config, _ = parse(["train", *arguments])
    return datasets.read(config)


# ----------------------------------------------------------------------------------- class lists
def folder_of(place):
    return read(
        "--config=configs/folder.py",
        "--config.dataset.name=fuzz",
        f"--config.dataset.root={place / 'set' / 'images'}",
        f"--config.dataset.class_names={place / 'classes.txt'}",
        "--config.dataset.held_out_fraction=0.25",
    )


@inputs(1500, st.lists(st.lists(NAMES, min_size=1, max_size=3), min_size=2, max_size=6))
def test_class_lists_of_different_names_are_read(place, lists):
    keys = [unicodedata.normalize("NFC", n).casefold() for own in lists for n in own]
    assume(len(set(keys)) == len(keys))
    lines = [" | ".join(own) for own in lists]
    assume(not lines[0].startswith("\ufeff"))
    (place / "classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert folder_of(place).class_synonyms == tuple(tuple(own) for own in lists)


@inputs(
    1500,
    st.one_of(st.binary(max_size=40), st.text("ab|_ \n\t\r\ufeff", max_size=30).map(str.encode)),
)
def test_any_class_list_is_read_or_refused_by_name(place, content):
    (place / "classes.txt").write_bytes(content)
    try:
        dataset = folder_of(place)
    except DataError as error:
        event("refused")
        assert "classes.txt" in str(error)
    else:
        event("read")
        names = [name for own in dataset.class_synonyms for name in own]
        assert len(dataset.class_synonyms) >= 2 and len(set(names)) == len(names)
        assert all(name == name.strip() != "" for name in names)


# ----------------------------------------------------------------------------------- split files
def split_of(place, content: bytes):
    (place / "set" / "split.json").write_bytes(content)
    return read(
        "--config=configs/eurosat.py",
        f"--config.dataset.root={place / 'set'}",
        "--config.dataset.images=images",
        "--config.dataset.split=split.json",
    )


@st.composite
def splits(draw):
    """A valid split file: each image once, and all labels named."""
    classes = draw(st.integers(2, 4))
    names = [f"Class_{c}" for c in range(classes)]
    images = draw(st.permutations(range(8)))
    labels = [n if n < classes else draw(st.integers(0, classes - 1)) for n in range(8)]
    rows = [[f"{n}.png", c, names[c]] for n, c in zip(images, labels, strict=True)]
    train = draw(st.integers(1, 6))
    test = draw(st.integers(train, 7))
    return {"train": rows[:train], "val": rows[train:test], "test": rows[test:]}


@inputs(1000, splits())
def test_valid_split_files_are_read(place, split):
    dataset = split_of(place, json.dumps(split).encode())
    training = split["train"] + split["val"]
    assert list(dataset.train.ids) == [row[0] for row in training]
    np.testing.assert_array_equal(dataset.train.labels, [row[1] for row in training])
    np.testing.assert_array_equal(dataset.test.labels, [row[1] for row in split["test"]])
    assert dataset.class_names == tuple(f"class {c}" for c in range(len(dataset.class_names)))


@inputs(1500, splits(), st.data())
def test_a_split_file_with_one_error_is_refused_by_name(place, split, data):
    part = data.draw(st.sampled_from(["train", "test"]))
    number = data.draw(st.integers(0, len(split[part]) - 1))
    row = list(split[part][number])
    what = data.draw(st.sampled_from(["path", "label", "name", "row", "twice", "part"]))
    named = f"{part}[{number}]"
    if what == "path":
        row[0] = named = data.draw(st.sampled_from(["missing.png", "../0.png", "/etc/hostname"]))
    elif what == "label":
        row[1] = data.draw(st.sampled_from([-1, "0", None, 1.5, True]))
    elif what == "name":
        row[2] = data.draw(st.sampled_from(["", " ", None, 3, ["a"]]))
    elif what == "row":
        row = data.draw(JSON.filter(lambda value: not isinstance(value, list) or len(value) != 3))
    elif what == "twice":
        named = row[0]
        split[part].append(row)
    split[part][number] = row
    if what == "part":
        named = repr(part)
        split[part] = data.draw(JSON.filter(lambda value: not isinstance(value, list)))
    with pytest.raises(DataError) as refused:
        split_of(place, json.dumps(split).encode())
    assert named in str(refused.value), (what, str(refused.value))


@inputs(1000, st.one_of(st.binary(max_size=60), JSON.map(lambda v: json.dumps(v).encode())))
def test_any_split_file_is_refused_by_name(place, content):
    with pytest.raises(DataError, match=r"split\.json"):
        split_of(place, content)


# ---------------------------------------------------------------------------------- descriptions
IDS = [f"{n}.png" for n in range(6)]
RECORDS = st.fixed_dictionaries(
    {
        "image": st.sampled_from([*IDS, "other.png"]),
        "kind": st.sampled_from(["image", "scene"]),
        "text": st.text(max_size=8),
    }
)


@inputs(1500, st.lists(RECORDS, max_size=12), st.booleans())
def test_the_last_description_of_an_image_is_used(place, records, cut_off):
    path = place / "texts.jsonl"
    lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records]
    path.write_bytes(b"".join(lines) + (b'{"image": "0.p' if cut_off else b""))
    newest = {r["image"]: sanitize(r["text"]).strip() for r in records if r["kind"] == "image"}
    expected = [newest.get(image) or None for image in IDS]
    if not any(expected):
        with pytest.raises(DataError, match=r"no 'image' description .*texts\.jsonl"):
            descriptions.read([path], ["image"], IDS)
        return
    found = descriptions.read([path], ["image"], IDS)
    assert found.texts["image"] == expected
    own = [r for r in records if r["kind"] == "image"]
    counts = found.counts["image"]
    assert counts["unknown_image"] == sum(r["image"] == "other.png" for r in own)
    known = [r["image"] for r in own if r["image"] != "other.png"]
    assert counts["duplicate"] == len(known) - len(set(known))
    assert counts["found"] + counts["missing"] == len(IDS)


@inputs(
    1500,
    st.lists(RECORDS, min_size=1, max_size=4),
    st.one_of(st.binary(min_size=1, max_size=30), JSON.map(lambda v: json.dumps(v).encode())),
)
def test_an_invalid_line_is_named_by_its_number(place, records, wrong):
    assume(not wrong.isspace() and b"\n" not in wrong)
    path = place / "texts.jsonl"
    lines = [json.dumps(record).encode() for record in records]
    path.write_bytes(b"\n".join([*lines, wrong, *lines]) + b"\n")
    with pytest.raises(DataError) as refused:
        descriptions.read([path], ["image"], IDS)
    assert f"texts.jsonl:{len(lines) + 1}:" in str(refused.value)


# -------------------------------------------------------------------------------------- images
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")
HOLDS = {
    "JPEG": {"1", "L", "RGB", "CMYK"},
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    "WEBP": {"RGB", "RGBA"},
    "GIF": {"1", "L", "P", "RGB"},
    "BMP": {"1", "L", "P", "RGB"},
    "TIFF": {"1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16"},
}
PREPROCESS = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)


def encoded(kind: str, mode: str, size: tuple[int, int], seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    for step in ("L", "I", "I;16") if mode == "I;16" else (mode,):
        image = image.convert(step)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def pixels_of(path) -> np.ndarray:
    image = open_image(path)
    with image_errors(path):
        return PREPROCESS.pixels(image)


SIZES = st.tuples(st.integers(1, 24), st.integers(1, 24))


@inputs(800, st.sampled_from(sorted(HOLDS)), st.sampled_from(MODES), SIZES, st.integers(0, 9))
def test_valid_images_are_read(place, kind, mode, size, seed):
    assume(mode in HOLDS[kind])
    (place / "image").write_bytes(encoded(kind, mode, size, seed))
    found = pixels_of(place / "image")
    assert found.shape == (8, 8, 3) and found.dtype == np.uint8


@inputs(
    2500,
    st.sampled_from(sorted(HOLDS)),
    SIZES,
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 400),
)
def test_damaged_images_are_read_or_refused_by_name(place, kind, size, changes, length):
    data = bytearray(encoded(kind, "RGB", size, 0))
    for where, value in changes:
        data[where % len(data)] = value
    if length < len(data):
        del data[length:]
    path = place / "image"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about the damage
        try:
            found = pixels_of(path)
        except UnreadableImage as error:
            event("refused")
            assert str(path) in str(error) and error.reason and "\n" not in error.reason
        else:
            event("read")
            assert found.shape == (8, 8, 3)
