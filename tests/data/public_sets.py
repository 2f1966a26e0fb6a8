"""Small copies of the ten public sets' layouts: their real names, a few generated images."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN, VAL, TEST = 3, 1, 2  # images of each class


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """A set as it lies on disk: classes as (path of image n, name in the files, name we show)."""

    root: str
    images: str
    split: str
    classes: tuple[tuple[str, str, str], ...]


SETS = {
    "eurosat": PublicSet(
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        (
            ("AnnualCrop/AnnualCrop_{n}.jpg", "Annual Crop Land", "annual crop land"),
            ("Forest/Forest_{n}.jpg", "Forest", "forest"),
            ("SeaLake/SeaLake_{n}.jpg", "Sea or Lake", "sea or lake"),
        ),
    ),
    "sun397": PublicSet(
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        (
            ("a/alley/sun_aaalbzqrimafwbi{n}.jpg", "alley", "alley"),
            ("c/church/outdoor/sun_aaavkosvhmhmdmz{n}.jpg", "outdoor church", "outdoor church"),
            ("t/tree_farm/sun_abbfpqykgxkxmro{n}.jpg", "tree_farm", "tree farm"),
        ),
    ),
    "food101": PublicSet(
        "food-101",
        "images",
        "split_zhou_Food101.json",
        (
            ("apple_pie/100564{n}.jpg", "apple_pie", "apple pie"),
            ("bibimbap/10065{n}.jpg", "bibimbap", "bibimbap"),
            ("waffles/98123{n}.jpg", "waffles", "waffles"),
        ),
    ),
    "flowers102": PublicSet(
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        (
            ("image_0673{n}.jpg", "pink primrose", "pink primrose"),
            ("image_0497{n}.jpg", "bird of paradise", "bird of paradise"),
            ("image_0001{n}.jpg", "blackberry lily", "blackberry lily"),
        ),
    ),
    "dtd": PublicSet(
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        (
            ("banded/banded_000{n}.jpg", "banded", "banded"),
            ("polka-dotted/polka-dotted_000{n}.jpg", "polka-dotted", "polka-dotted"),
            ("zigzagged/zigzagged_000{n}.jpg", "zigzagged", "zigzagged"),
        ),
    ),
    "fgvc_aircraft": PublicSet(
        "fgvc_aircraft",
        "images",
        "",
        (
            ("003430{n}.jpg", "707-320", "707-320"),
            ("104575{n}.jpg", "Cessna 172", "cessna 172"),
            ("182558{n}.jpg", "F/A-18", "f/a-18"),
        ),
    ),
    "oxford_pets": PublicSet(
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        (
            ("Abyssinian_{n}.jpg", "abyssinian", "abyssinian"),
            ("american_bulldog_{n}.jpg", "american_bulldog", "american bulldog"),
            ("yorkshire_terrier_{n}.jpg", "yorkshire_terrier", "yorkshire terrier"),
        ),
    ),
    "stanford_cars": PublicSet(
        "stanford_cars",
        "",
        "split_zhou_StanfordCars.json",
        (
            ("cars_{part}/0000{n}.jpg", "2000 AM General Hummer SUV", "2000 am general hummer suv"),
            (
                "cars_{part}/0001{n}.jpg",
                "2009 Bugatti Veyron 16.4 Coupe",
                "2009 bugatti veyron 16 4 coupe",
            ),
            (
                "cars_{part}/0002{n}.jpg",
                "2012 Ram C/V Cargo Van Minivan",
                "2012 ram c/v cargo van minivan",
            ),
        ),
    ),
    "ucf101": PublicSet(
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        (
            (
                "Apply_Eye_Makeup/v_ApplyEyeMakeup_g0{n}_c01.jpg",
                "Apply_Eye_Makeup",
                "apply eye makeup",
            ),
            ("Basketball/v_Basketball_g0{n}_c01.jpg", "Basketball", "basketball"),
            ("Yo_Yo/v_YoYo_g0{n}_c01.jpg", "Yo_Yo", "yo yo"),
        ),
    ),
    "caltech101": PublicSet(
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        (
            ("accordion/image_000{n}.jpg", "accordion", "accordion"),
            ("airplanes/image_000{n}.jpg", "airplane", "airplane"),
            ("yin_yang/image_000{n}.jpg", "yin_yang", "yin yang"),
        ),
    ),
}


def rows(public: PublicSet) -> dict[str, list[list]]:
    """The content of the set's split file."""
    parts: dict[str, list[list]] = {"train": [], "val": [], "test": []}
    for label, (pattern, name, _) in enumerate(public.classes):
        for n in range(1, TRAIN + VAL + TEST + 1):
            part = "train" if n <= TRAIN else "val" if n <= TRAIN + VAL else "test"
            path = pattern.format(n=n, part="test" if part == "test" else "train")
            parts[part].append([path, label, name])
    return parts


def make_tree(data_dir: Path, name: str) -> Path:
    """Write a small copy of a set below `data_dir`; return its root."""
    public = SETS[name]
    root = data_dir / public.root
    parts = rows(public)
    rng = np.random.default_rng(0)
    for path, label, _ in itertools.chain(*parts.values()):
        file = root / public.images / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (20, 24, 3)) + np.eye(3)[label] * 150
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    if public.split:
        (root / public.split).write_text(json.dumps(parts), encoding="utf-8")
        return root
    names = [name for _, name, _ in public.classes]
    (root / "variants.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    for part, own in parts.items():
        lines = [f"{path.removesuffix('.jpg')} {name}\n" for path, _, name in own]
        (root / f"images_variant_{part}.txt").write_text("".join(lines), encoding="utf-8")
    return root


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder with its time and bytes, to see whether something was changed."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
