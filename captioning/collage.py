"""One image out of several, for models that take a single one (the released code's formula)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

CANVAS = 672  # pixels, both sides
GAP = 20  # pixels between cells


def collage(images: Sequence[Image.Image]) -> Image.Image:
    """Arrange images row by row in a square of cells on black.

    There are max(2, ⌈√n⌉) cells a row. Each image is scaled to fit its cell, up or down, and
    centerd in it.

    Args:
        images: one or more, in any mode.

    Returns:
        An RGB image of 672 × 672 pixels.
    """
    if not images:
        raise ValueError("expected at least one image")
    side = max(2, math.isqrt(len(images) - 1) + 1)  # cells a row
    cell = (CANVAS - GAP * (side - 1)) // side
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    for number, image in enumerate(images):
        row, column = divmod(number, side)
        size = _fitted(image, cell)
        fitted = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        left = column * (cell + GAP) + (cell - size[0]) // 2
        top = row * (cell + GAP) + (cell - size[1]) // 2
        canvas.paste(fitted, (left, top))
    return canvas


def _fitted(image: Image.Image, cell: int) -> tuple[int, int]:
    """Width and height within a cell, in the released code's arithmetic (rounding included)."""
    ratio = image.width / image.height
    # Only here a panorama's short side never vanishes.
    if ratio > 1:
        return cell, max(1, int(cell / ratio))
    return max(1, int(cell * ratio)), cell


def single_image(images: Sequence[Image.Image]) -> Image.Image:
    """The image itself in RGB, or the collage of several."""
    return images[0].convert("RGB") if len(images) == 1 else collage(images)
