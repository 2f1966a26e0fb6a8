"""One picture out of several, for models that take a single one (the released code's formula)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

CANVAS = 672  # pixels, both sides
GAP = 20  # pixels between cells


def collage(pictures: Sequence[Image.Image]) -> Image.Image:
    """Arrange pictures row by row in a square of cells on black.

    There are max(2, ⌈√n⌉) cells a row. Each picture is scaled to fit its cell, up or down, and
    centred in it.

    Args:
        pictures: one or more, in any mode.

    Returns:
        An RGB picture of 672 × 672 pixels.
    """
    if not pictures:
        raise ValueError("expected at least one picture")
    side = max(2, math.isqrt(len(pictures) - 1) + 1)  # cells a row
    cell = (CANVAS - GAP * (side - 1)) // side
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, side)
        size = _fitted(picture, cell)
        fitted = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        left = column * (cell + GAP) + (cell - size[0]) // 2
        top = row * (cell + GAP) + (cell - size[1]) // 2
        canvas.paste(fitted, (left, top))
    return canvas


def _fitted(picture: Image.Image, cell: int) -> tuple[int, int]:
    """Width and height within a cell, in the released code's arithmetic (rounding included)."""
    ratio = picture.width / picture.height
    # Only here a panorama's short side never vanishes.
    if ratio > 1:
        return cell, max(1, int(cell / ratio))
    return max(1, int(cell * ratio)), cell


def single_picture(pictures: Sequence[Image.Image]) -> Image.Image:
    """The picture itself in RGB, or the collage of several."""
    return pictures[0].convert("RGB") if len(pictures) == 1 else collage(pictures)
