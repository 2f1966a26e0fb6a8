"""Several images as one, for models that take a single image (formula of the released code)."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

CANVAS = 672  # pixels, width and height
GAP = 20  # pixels between cells


def collage(images: Sequence[Image.Image]) -> Image.Image:
    """Arrange images row by row in a square of cells on black.

    Each row has max(2, ⌈√n⌉) cells. Each image is scaled up or down to fit its cell, and centered
    in it. They may have any mode; the result is RGB.
    """
    if not images:
        raise ValueError("expected at least one image")
    side = max(2, math.isqrt(len(images) - 1) + 1)  # cells per row; isqrt(n - 1) + 1 is ⌈√n⌉
    cell = (CANVAS - GAP * (side - 1)) // side
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    for number, image in enumerate(images):
        row, column = divmod(number, side)
        ratio = image.width / image.height
        # Rounded as in the released code, but the short side of a panorama is at least one pixel.
        width = max(1, int(cell * min(1, ratio)))
        height = cell if ratio <= 1 else max(1, int(cell / ratio))
        fitted = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        left = column * (cell + GAP) + (cell - width) // 2
        top = row * (cell + GAP) + (cell - height) // 2
        canvas.paste(fitted, (left, top))
    return canvas


def single_image(images: Sequence[Image.Image]) -> Image.Image:
    """Return the image in RGB, or the collage of several."""
    return images[0].convert("RGB") if len(images) == 1 else collage(images)


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """Return an image as a data URI; `kind`: "png" or "jpeg", `options`: of Pillow's `save`."""
    image.info.clear()  # color profiles and the like, which readers treat differently
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
