"""Digits rendered from matplotlib's fonts, for pre-training the demo's tiny CLIP.

Size, position, stroke width, shear, rotation, a smooth warp, blur, resolution, contrast and noise
of every image are random. Five fonts are held out, to choose hyperparameters of the pre-training on
unseen shapes. The handwritten digits to which the demo adapts (`lattec_jax.data.datasets.digits`)
are not used here.

matplotlib (extra `demo`) is only needed for its font files; Pillow draws them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.extras import install_command

# The TrueType fonts of matplotlib that have lining digits.
TRAINING_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "cmb10", "cmr10",
)  # fmt: skip
HELD_OUT_FONTS = ("DejaVuSerif-Italic", "STIXGeneralItalic", "cmss10", "cmti10", "cmtt10")

_CANVAS = 64  # side in pixels of the image in which a digit is drawn and warped


class Renderer:
    """Draws random images of digits with matplotlib's font files of these names."""

    def __init__(self, fonts: tuple[str, ...] = TRAINING_FONTS, size: int = 32) -> None:
        try:
            import matplotlib
        except ImportError as error:
            raise DataError(
                "expected matplotlib, whose fonts are used to draw the demo's digits, found none; "
                f"{install_command('demo')}"
            ) from error
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        missing = [name for name in fonts if not (folder / f"{name}.ttf").is_file()]
        if missing:
            raise DataError(
                f"expected matplotlib's fonts in {folder}, found no {', '.join(missing)}; "
                f"install a matplotlib that has them: {install_command('demo')}"
            )
        self.size = size  # side of the images in pixels
        self._fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 46) for name in fonts]

    def images(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw `[N, S, S]` uint8 images, light on dark; return them and the `[N]` int32 digits, of
        which each of the ten is drawn equally often."""
        images = np.empty((count, self.size, self.size), np.uint8)
        labels = np.random.default_rng(seed).permutation(np.arange(count) % 10).astype(np.int32)
        for index, label in enumerate(labels):
            # One generator per image: its strokes do not depend on `count`.
            rng = np.random.default_rng((seed, index))
            glyph = self._glyph(rng, int(label))
            warped = _warp(glyph, _random_matrix(rng), rng.uniform(0.0, 2.5), rng)
            images[index] = _degrade(_crop(warped, rng), self.size, rng)
        return images, labels

    def _glyph(self, rng: np.random.Generator, digit: int) -> np.ndarray:
        """Draw a digit in a random font and stroke width, centered in `[64, 64]`, 0 to 1."""
        font = self._fonts[int(rng.integers(len(self._fonts)))]
        image = Image.new("L", (_CANVAS, _CANVAS))
        draw = ImageDraw.Draw(image)
        stroke = int(rng.integers(0, 3))
        left, top, right, bottom = draw.textbbox((0, 0), str(digit), font, stroke_width=stroke)
        position = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
        draw.text(position, str(digit), 255, font, stroke_width=stroke)
        return np.asarray(image, np.float32) / 255.0


def _random_matrix(rng: np.random.Generator) -> np.ndarray:
    """Return a random rotation, shear and stretch: `[2, 2]`, from output to input (row, column)."""
    angle = np.deg2rad(rng.uniform(-15.0, 15.0))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, 0.0], [rng.uniform(-0.35, 0.35), 1.0]])
    stretch = np.diag([1.0 / rng.uniform(0.85, 1.1), 1.0 / rng.uniform(0.75, 1.35)])
    return rotation @ shear @ stretch


def _warp(
    image: np.ndarray, matrix: np.ndarray, amplitude: float, rng: np.random.Generator
) -> np.ndarray:
    """Apply `matrix` about the center and a smooth random displacement of a few pixels."""
    rows, columns = np.mgrid[:_CANVAS, :_CANVAS].astype(np.float32)
    center = (_CANVAS - 1) / 2
    grid = np.stack([rows - center, columns - center])  # [2, 64, 64]
    # [2, 2] · [2, 64, 64] -> [2, 64, 64]
    coordinates = np.tensordot(matrix.astype(np.float32), grid, 1) + center
    coarse = rng.normal(0.0, amplitude, (2, 4, 4))
    fine = [np.asarray(ndimage.zoom(axis, _CANVAS / 4, order=3)) for axis in coarse]
    return ndimage.map_coordinates(image, coordinates + np.stack(fine), order=1, mode="constant")


def _crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crop the digit and pad it to a square with random margins."""
    rows, columns = np.nonzero(image > 0.2)
    if not rows.size:
        return image
    ink = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    side = int(np.ceil(max(ink.shape) * rng.uniform(1.0, 1.3)))
    margin = np.array([side - ink.shape[0], side - ink.shape[1]])
    # Nearer to the center than to the edges, as in images of single characters.
    start = np.rint(margin * rng.uniform(0.25, 0.75, 2)).astype(int)
    framed = np.zeros((side, side), np.float32)
    framed[start[0] : start[0] + ink.shape[0], start[1] : start[1] + ink.shape[1]] = ink
    return framed


def _degrade(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Blur, downsample, change contrast, add noise, and resize to `[size, size]`."""
    blurred = ndimage.gaussian_filter(image, rng.uniform(0.0, 0.03) * image.shape[0])
    small = int(rng.choice([8, 8, 10, 12, 16, 24]))
    resized = _to_pil(blurred).resize((small, small), Image.Resampling.BOX)
    pixels = np.asarray(resized, np.float32) / 255.0
    pixels = np.clip(pixels / max(float(pixels.max()), 0.1), 0.0, 1.0)
    pixels = pixels ** rng.uniform(0.6, 1.4) * rng.uniform(0.8, 1.0)
    pixels = pixels + rng.normal(0.0, rng.uniform(0.0, 0.06), pixels.shape)
    return np.asarray(_to_pil(pixels).resize((size, size), Image.Resampling.BICUBIC), np.uint8)


def _to_pil(pixels: np.ndarray) -> Image.Image:
    """Convert values from 0 to 1 to a grayscale image."""
    return Image.fromarray(np.clip(pixels * 255.0, 0, 255).astype(np.uint8))
