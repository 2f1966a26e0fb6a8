"""Whatever lies in a folder: from the file to the image cache as open_clip sees it, or named."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from lattec_jax.data.images.image_cache import open_image_caches
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.runtime.errors import DataError
from tests.data.datasets.test_folder import load
from tests.data.images.test_preprocess import bomb, encoded, image_transform, make_image

__all__ = ["image_transform"]  # a fixture
MEAN = (0.5, 0.5, 0.5)


def frames(count: int, mode: str) -> list[Image.Image]:
    return [make_image((40 + n, 30), mode).resize((40, 30)) for n in range(count)]


def save_readable(root) -> dict[str, int]:
    """Write every kind of readable image; returns how many of each group."""
    for mode in ("RGB", "L", "LA", "RGBA", "P", "1", "I;16"):
        make_image((61, 47), mode).save(root / f"mode {mode.replace(';', '')}.png")
    palette = make_image((61, 47), "P")
    palette.save(root / "palette with transparency.png", transparency=3)
    for mode in ("CMYK", "L"):
        make_image((61, 47), mode).save(root / f"{mode}.jpg")
    make_image((61, 47), "CMYK").save(root / "print.tiff")
    turned = Image.Exif()
    turned[0x0112] = 6
    make_image((61, 47), "RGB").save(root / "turned.jpg", exif=turned)
    for suffix in ("gif", "webp", "png"):
        first, *more = frames(3, "RGB")
        first.save(root / f"animated.{suffix}", save_all=True, append_images=more)
    make_image((1, 1), "RGB").save(root / "pixel.png")
    make_image((3000, 4), "RGB").save(root / "panorama.png")
    make_image((2, 900), "L").save(root / "tower.png")
    make_image((500, 400), "L").resize((2500, 2000)).save(root / "huge.png", compress_level=1)
    (root / "really a webp.jpg").write_bytes(encoded("WEBP"))
    for name in ("猫.png", "قطة.png", "café.png", "cafe\u0301 2.png", "🐈.png", "two\nlines.png"):
        make_image((20, 30), "RGB").save(root / name)
    os.symlink(root / "pixel.png", root / "link.png")
    return len(list(root.iterdir()))


UNREADABLE = {
    "truncated.jpg": encoded("JPEG")[:-300],
    "empty.png": b"",
    "page.jpg": b"<html></html>",
    "bomb.bmp": bomb(),
}


@pytest.mark.filterwarnings("ignore:Image size:Warning")
def test_a_folder_of_odd_images(tmp_path, image_transform):
    root = tmp_path / "images"
    root.mkdir()
    readable = save_readable(root)
    for name, content in UNREADABLE.items():
        (root / name).write_bytes(content)
    os.symlink(root / "nowhere.png", root / "dangling.png")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    names = str(tmp_path / "names.txt")
    split = load(root, train="", test="", held_out_fraction=0.0, class_names=names).train
    preprocess = Preprocess(size=(24, 24), mean=MEAN, std=MEAN)
    with pytest.raises(DataError, match=r"config\.image_cache\.max_unreadable_fraction"):
        open_image_caches(split, tmp_path / "image_caches", preprocess, 60)
    cache = open_image_caches(split, tmp_path / "image_caches", preprocess, 60, 0.2).evaluation
    assert len(cache.ids) == readable
    left_out = {entry["image"]: entry["reason"] for entry in cache.failed}
    assert left_out.keys() - {"dangling.png"} == UNREADABLE.keys()
    assert all(left_out.values())
    transform = image_transform(24, is_train=False, mean=MEAN, std=MEAN)
    transform.transforms = transform.transforms[:-1]
    for name, found in zip(cache.ids, cache.pixels, strict=True):
        with Image.open(root / name) as image:
            expected = np.rint(transform(image).numpy().transpose(1, 2, 0) * 255)
        np.testing.assert_array_equal(found, expected.astype(np.uint8), err_msg=name)
