"""Files of data sets, descriptions, image caches and checkpoints, to be damaged at random."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from captioning.shards import Shard, ShardWriter, read_records, shard_path
from lattec_jax.data import datasets, descriptions
from lattec_jax.data.datasets import coop, tfds_builder
from lattec_jax.data.datasets.dataset import Dataset
from lattec_jax.data.images import image_cache
from lattec_jax.data.images.content_hashes import content_hashes
from lattec_jax.data.images.preprocess import Preprocess, image_errors, image_size, open_image
from lattec_jax.data.text.prompts import description_prompt
from lattec_jax.runtime import sharding
from lattec_jax.runtime.config import parse
from lattec_jax.training.checkpoint_checksums import CHECKSUMS, damage, write_checksums
from lattec_jax.training.checkpoints import CheckpointManager, read
from lattec_jax.training.state import init_state
from tests.fuzz.mutations import Target

PREPROCESS = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)
CLASSES = ("cat", "dog")


def targets(directory: Path) -> dict[str, Target]:
    """All formats, with a valid file of each.

    Args:
        directory: an empty directory for the files that are read together with the damaged one.
    """
    return {
        **_lists(directory / "lists"),
        **_descriptions(directory / "descriptions"),
        **_images(),
        **_image_cache(directory / "image_caches"),
        **_checkpoint(directory / "checkpoints"),
    }


# ----------------------------------------------------------------------------- data sets and lists


def _lists(root: Path) -> dict[str, Target]:
    images = [f"{CLASSES[n % 2]}/{n}.png" for n in range(6)]
    for image in images:
        (root / "images" / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / "images" / image)
    rows = [[image, n % 2, CLASSES[n % 2]] for n, image in enumerate(images)]
    split = {"train": rows[:3], "val": rows[3:4], "test": rows[4:]}

    def folder_with(setting: str, *more: str) -> Callable[[Path], Dataset]:
        return lambda path: _read_set(
            "folder",
            f"--config.dataset.root={root / 'images'}",
            f"--config.dataset.{setting}={path}",
            *more,
        )

    def read_split(path: Path) -> None:
        _read_set("eurosat", f"--config.dataset.root={root}", "--config.dataset.images=images",
                  f"--config.dataset.split={path}")  # fmt: skip
        coop.read_split(path)

    index, read_index = _tfds_index(root / "tfds")
    labels = "image,label\n" + "".join(f'"{image}",{n % 2}\n' for n, image in enumerate(images))
    return {
        "split.json": Target(json.dumps(split).encode(), ".json", read_split),
        "class names": Target(b"cat | kitty\ndog\n", ".txt", folder_with("class_names")),
        "image list": Target("\n".join(images).encode(), ".txt", folder_with("train")),
        "labels.csv": Target(labels.encode(), ".csv", folder_with("labels")),
        "index of tfds": Target(index, ".json", read_index),
        **_fgvc(root / "fgvc"),
    }


def _read_set(name: str, *arguments: str) -> Dataset:
    config, _ = parse(["x", f"--config=configs/{name}.py", "--config.dataset.name=x", *arguments])
    return datasets.read(config)


def _fgvc(root: Path) -> dict[str, Target]:
    lists = {"variants.txt": "707-320\nA380\n"}
    for number, part in enumerate(("train", "val", "test")):
        names = [f"{number}{c}" for c in range(2)]
        lists[f"images_variant_{part}.txt"] = f"{names[0]} 707-320\n{names[1]} A380\n"
        for name in names:
            (root / "images").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(root / "images" / f"{name}.jpg")
    for name, text in lists.items():
        (root / name).write_text(text, encoding="utf-8")

    def read_in_place_of(name: str) -> Callable[[Path], None]:
        def read_set(path: Path) -> None:
            with _in_place_of(root / name, path):
                _read_set("fgvc_aircraft", f"--config.dataset.root={root}",
                          "--config.dataset.images=images")  # fmt: skip

        return read_set

    return {
        f"fgvc {name}": Target(text.encode(), ".txt", read_in_place_of(name))
        for name, text in lists.items()
    }


@contextlib.contextmanager
def _in_place_of(place: Path, path: Path):
    """Within it the file `place` is a copy of `path`."""
    before = place.read_bytes()
    shutil.copyfile(path, place)
    try:
        yield
    finally:
        place.write_bytes(before)


def _tfds_index(folder: Path) -> tuple[bytes, Callable[[Path], None]]:
    folder.mkdir()
    source = ["x/1.0.0", [["train", 2, 10]], "{split}"]
    examples = [tfds_builder.Example("train", n, f"{n}.jpg", n, ".jpg", 5) for n in range(2)]
    rows = [list(dataclasses.astuple(example)) for example in examples]
    info = SimpleNamespace(
        features={"label": SimpleNamespace(names=list(CLASSES))},
        splits={"train": SimpleNamespace(num_examples=2)},
    )

    def read_index(path: Path) -> None:
        shutil.copyfile(path, folder / tfds_builder.INDEX)
        found = tfds_builder.read_index(folder, source, SimpleNamespace(info=info))
        assert found is None or all(
            isinstance(e, tfds_builder.Example) and 0 <= e.label < 2 for e in found
        )

    return json.dumps({"source": source, "examples": rows}).encode(), read_index


# ------------------------------------------------------------------------------------ descriptions


def _descriptions(directory: Path) -> dict[str, Target]:
    (directory / "shards").mkdir(parents=True)
    ids, contents = ["a", "b", "c"], ["0" * 64] * 3
    prompt = description_prompt("What is it?", "cat")
    values = {"engine": "e", "model": "m", "prompt": prompt, "decoding": "greedy"}
    lines = []
    for image in ids:
        for kind, members in (("image", ()), ("group", (image, "b"))):
            record = descriptions.Record(image, kind, f"a {kind}", members=members, **values)
            key = descriptions.key_of(record, contents[: len(members) or 1])
            lines.append(descriptions.to_line(record._replace(key=key)))
    lines.append(descriptions.to_line(descriptions.Record("a", "image", "", error="none")))
    valid = b"".join(lines)
    expected = descriptions.Expected(contents, {k: [prompt] * 3 for k in ("image", "group")})

    def read_all(path: Path) -> None:
        found = descriptions.read([path], ["image", "group"], ids, expected)
        for texts in found.texts.values():
            json.dumps([text.encode().decode() for text in texts if text])

    def continue_shard(path: Path) -> None:
        merged = directory / "x.jsonl"
        shard = shard_path(merged, Shard(0, 1))
        shutil.copyfile(path, shard)
        with ShardWriter(shard) as writer:
            writer.append(descriptions.Record("d", "image", "text", key="k"))
        assert "k" in read_records(merged)

    return {
        "descriptions": Target(valid, ".jsonl", read_all),
        "shard": Target(valid, ".jsonl", continue_shard),
    }


# ------------------------------------------------------------------------- images and what is kept


def _images() -> dict[str, Target]:
    pixels = np.random.default_rng(0).integers(0, 256, (19, 23, 3), np.uint8)
    found = {}
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        found[kind] = Target(file.getvalue(), f".{kind.lower()}", _read_image)
    return found


def _read_image(path: Path) -> None:
    image = open_image(path)
    with image_errors(path):
        assert PREPROCESS.pixels(image).shape == (8, 8, 3)
    image_size(path)


def _image_cache(directory: Path) -> dict[str, Target]:
    (directory / "images").mkdir(parents=True)
    for number in range(3):
        size = (number + 5, 9)
        Image.new("RGB", size).save(directory / "images" / f"{number}.png")
    (directory / "images" / "3.png").write_bytes(b"no image")
    split = _read_set(
        "folder",
        f"--config.dataset.root={directory / 'images'}",
        f"--config.dataset.class_names={_class_list(directory)}",
        "--config.dataset.held_out_fraction=0",
    ).train

    def open_caches() -> image_cache.ImageCaches:
        return image_cache.open_image_caches(
            split, directory / "made", PREPROCESS, 8, max_unreadable_fraction=0.5
        )

    caches = open_caches()

    def read_in_place_of(file: Path) -> Callable[[Path], None]:
        def read_cache(path: Path) -> None:
            with _in_place_of(file, path):
                for opened in open_caches():
                    assert opened.read(np.arange(len(opened.ids))).shape[3:] == (3,)

        return read_cache

    found = {}
    for kind, cache in caches._asdict().items():
        for file in sorted(cache.directory.iterdir()):
            target = Target(file.read_bytes(), file.suffix, read_in_place_of(file))
            found[f"{kind} {file.name}"] = target
    hashes = directory / "content.json"
    content_hashes(split.paths, hashes)

    def read_content(path: Path) -> None:
        shutil.copyfile(path, hashes)
        assert all(isinstance(digest, str) for digest in content_hashes(split.paths, hashes))

    return {**found, "content.json": Target(hashes.read_bytes(), ".json", read_content)}


def _class_list(directory: Path) -> Path:
    path = directory / "classes.txt"
    path.write_text("cat\ndog\n", encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------- checkpoints


def _checkpoint(directory: Path) -> dict[str, Target]:
    """Each file of a step, damaged with sums that say so and with sums that fit the damage."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    params = {"kernel": jnp.full((8, 5), 0.5), "bias": jnp.arange(5) + 0.5}
    state = init_state(params, optax.adam(1e-3), {"prototypes": jnp.ones((3, 4))}, mesh, seed=7)
    state = state.replace(step=state.step + 2)
    with CheckpointManager(directory / "valid", 2) as checkpoints:
        checkpoints.save(state, 2, {"seconds": 1.0})
    place = directory / "damaged"

    def read_step(name: str, sums_fit: bool) -> Callable[[Path], None]:
        def restore(path: Path) -> None:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(directory / "valid", place)
            shutil.copyfile(path, place / "2" / name)
            if sums_fit:
                write_checksums(place / "2")
            with CheckpointManager(place, 2) as checkpoints:
                checkpoints.restore(state, mesh)
            if (place / "2").exists():  # it was not set aside
                assert damage(place / "2") == ""
                read(place, 2)

        return restore

    found = {}
    for file in sorted(p for p in (directory / "valid" / "2").rglob("*") if p.is_file()):
        name = file.relative_to(directory / "valid" / "2").as_posix()
        content = file.read_bytes()
        shown = re.sub(r"\b[0-9a-f]{32}\b", str(len(found)), name)  # Orbax draws these names
        found[f"checkpoint {shown}"] = Target(content, "", read_step(name, sums_fit=False))
        if name != CHECKSUMS and content:
            found[f"checkpoint {shown}, sums that fit"] = Target(content, "", read_step(name, True))
    return found
