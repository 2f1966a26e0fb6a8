"""Digits rendered from the fonts that matplotlib carries, for pre-training the demo's tiny CLIP.

Every image is drawn anew: size, place, stroke width, shear, rotation, a smooth warp, blur,
resolution, contrast and noise are random. Five faces are held out, so that everything about the
pre-training can be chosen on shapes it did not see. The handwritten digits that the demo adapts to
(`lattec_jax.data.datasets.digits`) play no part here.

matplotlib (extra `demo`) is only asked where its fonts lie; Pillow draws them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from lattec_jax.runtime.errors import DataError

# The faces in which matplotlib's folder of TrueType fonts has lining digits.
TRAINING_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "cmb10",
    "cmr10",
)
HELD_OUT_FONTS = ("DejaVuSerif-Italic", "STIXGeneralItalic", "cmss10", "cmti10", "cmtt10")

_CANVAS = 64  # pixels a side while a digit is drawn and bent, before it is made small


class Renderer:
    """Draws random images of digits in a set of faces.

    Args:
        fonts: names of faces in matplotlib's folder, without `.ttf`.
        size: pixels a side of the images.

    Raises:
        DataError: matplotlib is not installed, or lacks one of the faces.
    """

    def __init__(self, fonts: tuple[str, ...] = TRAINING_FONTS, size: int = 32) -> None:
        folder = _font_folder()
        missing = [name for name in fonts if not (folder / f"{name}.ttf").is_file()]
        if missing:
            raise DataError(
                f"expected matplotlib's fonts in {folder}, found no {', '.join(missing)}; "
                "install a matplotlib that carries them: pip install -e '.[demo]'"
            )
        self.size = size
        self._paths = [str(folder / f"{name}.ttf") for name in fonts]
        self._cache: dict[tuple[int, int], ImageFont.FreeTypeFont] = {}

    def images(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw `count` images, light ink on a dark ground, the ten digits equally often.

        Returns:
            `[N, S, S]` uint8 images and `[N]` int32 digits. The same `seed` draws the same.
        """
        images = np.empty((count, self.size, self.size), np.uint8)
        labels = np.random.default_rng(seed).permutation(np.arange(count) % 10).astype(np.int32)
        for index, label in enumerate(labels):
            # One generator per image: the first n of a longer set are the shorter set's strokes.
            rng = np.random.default_rng((seed, index))
            images[index] = self._image(rng, int(label))
        return images, labels

    def _image(self, rng: np.random.Generator, digit: int) -> np.ndarray:
        """One image, `[S, S]` uint8."""
        drawn = self._glyph(rng, digit)
        bent = _warp(drawn, _matrix(rng), rng.uniform(0.0, 2.5), rng)
        bent = _frame(bent, rng)
        return _photograph(bent, self.size, rng)

    def _glyph(self, rng: np.random.Generator, digit: int) -> np.ndarray:
        """A digit in a random face and stroke width, in the middle of `[64, 64]`, 0 to 1."""
        font = self._font(int(rng.integers(len(self._paths))), 46)
        image = Image.new("L", (_CANVAS, _CANVAS))
        draw = ImageDraw.Draw(image)
        stroke = int(rng.integers(0, 3))
        left, top, right, bottom = draw.textbbox((0, 0), str(digit), font, stroke_width=stroke)
        place = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
        draw.text(place, str(digit), 255, font, stroke_width=stroke)
        return np.asarray(image, np.float32) / 255.0

    def _font(self, index: int, points: int) -> ImageFont.FreeTypeFont:
        if (index, points) not in self._cache:
            self._cache[index, points] = ImageFont.truetype(self._paths[index], points)
        return self._cache[index, points]


def _font_folder() -> Path:
    """Where matplotlib keeps its TrueType fonts."""
    try:
        import matplotlib
    except ImportError as error:
        raise DataError(
            "expected matplotlib, whose fonts the demo's digits are drawn from, found none; "
            "pip install -e '.[demo]'"
        ) from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _matrix(rng: np.random.Generator) -> np.ndarray:
    """Random rotation, shear and stretch as the inverse map of (row, column), `[2, 2]`."""
    angle = np.deg2rad(rng.uniform(-15.0, 15.0))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, 0.0], [rng.uniform(-0.35, 0.35), 1.0]])
    stretch = np.diag([1.0 / rng.uniform(0.85, 1.1), 1.0 / rng.uniform(0.75, 1.35)])
    return rotation @ shear @ stretch


def _warp(
    image: np.ndarray, matrix: np.ndarray, amplitude: float, rng: np.random.Generator
) -> np.ndarray:
    """Apply `matrix` about the center and a smooth random displacement of some pixels."""
    rows, columns = np.mgrid[:_CANVAS, :_CANVAS].astype(np.float32)
    center = (_CANVAS - 1) / 2
    grid = np.stack([rows - center, columns - center])  # [2, 64, 64]
    where = np.tensordot(matrix.astype(np.float32), grid, 1) + center
    coarse = rng.normal(0.0, amplitude, (2, 4, 4))
    bend = np.stack([ndimage.zoom(axis, _CANVAS / 4, order=3) for axis in coarse])
    return ndimage.map_coordinates(image, where + bend, order=1, mode="constant")


def _frame(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut the ink out and lay it with random margins into a square, `[S', S']`."""
    rows, columns = np.nonzero(image > 0.2)
    if not rows.size:
        return image
    ink = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    side = int(np.ceil(max(ink.shape) * rng.uniform(1.0, 1.3)))
    room = np.array([side - ink.shape[0], side - ink.shape[1]])
    # Nearer to the middle than to the edges, as a cut-out character is.
    start = np.rint(room * rng.uniform(0.25, 0.75, 2)).astype(int)
    framed = np.zeros((side, side), np.float32)
    framed[start[0] : start[0] + ink.shape[0], start[1] : start[1] + ink.shape[1]] = ink
    return framed


def _photograph(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Blur, make small, enlarge to `[size, size]`, and add contrast and noise."""
    blurred = ndimage.gaussian_filter(image, rng.uniform(0.0, 0.03) * image.shape[0])
    small = int(rng.choice([8, 8, 10, 12, 16, 24]))
    image = Image.fromarray(np.clip(blurred * 255.0, 0, 255).astype(np.uint8))
    pixels = np.asarray(image.resize((small, small), Image.Resampling.BOX), np.float32) / 255.0
    pixels = np.clip(pixels / max(float(pixels.max()), 0.1), 0.0, 1.0)
    pixels = pixels ** rng.uniform(0.6, 1.4) * rng.uniform(0.8, 1.0)
    pixels = pixels + rng.normal(0.0, rng.uniform(0.0, 0.06), pixels.shape)
    image = Image.fromarray(np.clip(pixels * 255.0, 0, 255).astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.uint8)
