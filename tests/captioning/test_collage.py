"""Collages, compared exactly with a second implementation of the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from captioning.collage import collage, single_image

CELLS = {1: 2, 2: 2, 3: 2, 4: 2, 5: 3, 8: 3, 9: 3, 10: 4, 16: 4, 17: 5}  # images -> cells a row
SIZES = [(64, 64), (300, 200), (17, 900), (1300, 31), (1, 1), (672, 672), (5000, 2), (333, 97)]


def make_images(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(count)
    found = []
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        found.append(image.convert(["RGB", "L", "P", "RGBA"][number % 4]))
    return found


def expected(images: list[Image.Image]) -> np.ndarray:
    """Assemble a collage in NumPy, cell by cell."""
    side = CELLS[len(images)]
    cell = (672 - 20 * (side - 1)) // side
    canvas = np.zeros((672, 672, 3), np.uint8)
    for number, image in enumerate(images):
        width, height = image.size
        # The longer side fills the cell; of the other a fraction of a pixel is cut off.
        longer, shorter = (cell, max(1, math.floor(cell / (max(image.size) / min(image.size)))))
        if width < height:
            shorter = max(1, math.floor(cell * (width / height)))
        new = (longer, shorter) if width >= height else (shorter, longer)
        fitted = np.asarray(image.convert("RGB").resize(new, Image.Resampling.LANCZOS))
        top = number // side * (cell + 20) + (cell - new[1]) // 2
        left = number % side * (cell + 20) + (cell - new[0]) // 2
        canvas[top : top + new[1], left : left + new[0]] = fitted
    return canvas


@pytest.mark.parametrize("count", CELLS)
def test_collages_to_the_pixel(count):
    images = make_images(count)
    found = collage(images)
    assert (found.mode, found.size) == ("RGB", (672, 672))
    np.testing.assert_array_equal(np.asarray(found), expected(images))


def test_the_gap_is_black_and_the_order_is_by_row():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    found = np.asarray(collage([Image.new("RGB", (9, 9), color) for color in colors]))
    assert [tuple(found[y, x]) for y in (0, 671) for x in (0, 671)] == colors
    assert not found[326:346].any() and not found[:, 326:346].any()
    assert found[325, 325].any() and found[346, 346].any()


def test_a_single_image_stays_as_it_is():
    image = make_images(3)[2]
    np.testing.assert_array_equal(np.asarray(single_image([image])), image.convert("RGB"))
    assert single_image(make_images(2)).size == (672, 672)


def test_nothing_to_show():
    with pytest.raises(ValueError, match="at least one"):
        collage([])
