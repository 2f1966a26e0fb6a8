"""Preprocessing of images for evaluation: from an image file to the pixels of the image tower.

`Preprocess.pixels` gives exactly the pixels of `open_clip.image_transform(..., is_train=False)`
before ToTensor and Normalize, with Pillow alone: the image is resized and cropped in its original
mode and converted to RGB afterwards. The order matters: palette images are resized with nearest
neighbor, transparent images with premultiplied alpha.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from annotated_types import Gt, Interval
from PIL import Image, ImageOps, UnidentifiedImageError

from lattec_jax.runtime.errors import DataError, WeightsError
from lattec_jax.runtime.safe_read import MAX_FILE_BYTES, open_regular
from lattec_jax.runtime.validation import STRICT, STRICT_OPEN, validate

log = logging.getLogger(__name__)

# Only these decoders are used, whatever the file name: some others (EPS) start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_READ_AT_ONCE = 2**26  # bytes; smaller files are read with one call
ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
_Side = Annotated[int, Interval(ge=1, le=2**14)]
_Positive = Annotated[float, Gt(0)]
_Triple = tuple[float, float, float]

# What Pillow raises on damaged files: the documented OSError (UnidentifiedImageError is one) and
# DecompressionBombError, and errors that its decoders do not convert (found by damaging files at
# random).
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # raised only if warnings are errors
)  # fmt: skip


class UnreadableImage(DataError):
    """An image file that cannot be decoded. `reason` is one line without the path."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"cannot read the image {os.fspath(path)}: {reason}")
        self.reason = reason


@contextmanager
def image_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert what Pillow raises on a damaged file into `UnreadableImage`."""
    try:
        yield
    except UnidentifiedImageError as error:
        names = ", ".join(FORMATS)
        raise UnreadableImage(path, f"not an image in one of {names}") from error
    except _DAMAGED as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = f"{type(error).__name__}: {' '.join(detail.split())}"
        raise UnreadableImage(path, reason) from error


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open and decode an image as open_clip does with `PIL.Image.open`: in its original mode, only
    the first frame, without applying the EXIF orientation (except to TIFF, where Pillow does it).

    A file that is missing, damaged, not an image, or too large raises UnreadableImage.
    """
    with image_errors(path), _opened(path) as image:
        if 0 in image.size:
            raise ValueError(f"a side of length 0 (width {image.width}, height {image.height})")
        image.load()
    if image.mode.startswith("I;16"):
        warn_of_16_bits(path)
    return image


_warned_of_16_bits = threading.Event()


def warn_of_16_bits(path: str | os.PathLike[str]) -> None:
    """Warn of the first image with 16 bits per pixel that this process reads."""
    if not _warned_of_16_bits.is_set():
        _warned_of_16_bits.set()
        log.warning(
            "%s has 16 bits per pixel: values above 255 become white, as in open_clip. Scale such "
            "images to 8 bits",
            os.fspath(path),
        )


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (width, height) from the header of an image file; errors are those of `open_image`."""
    with image_errors(path), _opened(path, header_only=True) as image:
        return image.size


@contextmanager
def _opened(path: str | os.PathLike[str], header_only: bool = False) -> Iterator[Image.Image]:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"the file has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
        content: BinaryIO = file
        if not header_only and size <= _READ_AT_ONCE:
            # Pillow reads in small parts, and threads would wait for Python's lock at each.
            content = io.BytesIO(file.read(size))
        with Image.open(content, formats=FORMATS) as image:
            yield image


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Preprocessing of a model. `size` is (height, width); `mean` and `std` are per RGB channel."""

    __pydantic_config__ = STRICT

    size: tuple[_Side, _Side]
    mean: _Triple
    std: tuple[_Positive, _Positive, _Positive]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: Annotated[int, Interval(ge=0, le=255)] = 0  # of the borders that "longest" adds

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Return the `[H, W, 3]` uint8 pixels of an image, before normalization.

        With "longest", open_clip fails if the short side of a very thin image would shrink to zero;
        here it is one pixel.
        """
        height, width = self.size
        filter_ = INTERPOLATIONS[self.interpolation]
        if self.resize_mode == "squash":
            image = image.resize((width, height), filter_)
        elif self.resize_mode == "longest":
            image = image.resize(_same_ratio(image, self.size, max), filter_)
            image = _center(image, height, width, self.fill_color)
        elif height == width:
            image = image.resize(_shortest_side(image, height), filter_)
            image = _center(image, height, width, 0)
        else:
            # open_clip ignores the interpolation here and always uses bicubic.
            image = image.resize(_same_ratio(image, self.size, min), Image.Resampling.BICUBIC)
            image = _center(image, height, width, 0)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; `from_dict` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any, where: str = "the preprocessing configuration") -> Preprocess:
        """Create from the result of `to_dict`. Raise WeightsError for any other content."""
        advice = "convert the weights again with python -m convert.openclip_to_flax"
        return validate(cls, values, where, WeightsError, advice)

    @classmethod
    def from_open_clip(
        cls,
        preprocess_cfg: Mapping[str, Any],
        image_size: int | tuple[int, int],
        where: str = "preprocess_cfg",
    ) -> Preprocess:
        """Create from open_clip's `preprocess_cfg`; missing keys get open_clip's defaults.

        Raise WeightsError for a value that is not implemented.

        Args:
            preprocess_cfg: from a pretrained tag or from `open_clip_config.json`.
            image_size: of the image tower; it overrides `size`, as in open_clip.
            where: name of the configuration, for messages.
        """
        given = {key: value for key, value in preprocess_cfg.items() if value is not None}
        advice = "choose weights of one of open_clip's models, or correct the configuration"
        read = validate(_OpenClipPreprocess, given, where, WeightsError, advice)
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        mean, std = (v if isinstance(v, tuple) else (v, v, v) for v in (read.mean, read.std))
        return cls(
            size=(height, width),
            mean=mean,
            std=std,
            # open_clip evaluates a model trained with "random" interpolation with bicubic.
            interpolation="bicubic" if read.interpolation == "random" else read.interpolation,
            resize_mode=read.resize_mode,
            fill_color=read.fill_color,
        )


@dataclasses.dataclass(frozen=True)
class _OpenClipPreprocess:
    """The used keys of open_clip's `preprocess_cfg`, with its defaults."""

    __pydantic_config__ = STRICT_OPEN
    mode: Literal["RGB"] = "RGB"
    mean: float | _Triple = (0.48145466, 0.4578275, 0.40821073)
    std: _Positive | tuple[_Positive, _Positive, _Positive] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: Annotated[int, Interval(ge=0, le=255)] = 0


# The sizes are Pillow's: (width, height).


def _shortest_side(image: Image.Image, side: int) -> tuple[int, int]:
    """Return the size with the shortest side equal to `side`; the other side is rounded down."""
    width, height = image.size
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _same_ratio(image: Image.Image, size: tuple[int, int], choose: Any) -> tuple[int, int]:
    """Return the size that fits into (`choose=max`) or covers (`min`) (height, width) = `size`."""
    ratio = choose(image.height / size[0], image.width / size[1])
    return max(1, round(image.width / ratio)), max(1, round(image.height / ratio))


def _center(image: Image.Image, height: int, width: int, fill: int) -> Image.Image:
    """Crop the center, after padding a smaller image with the color `fill`."""
    if image.size == (width, height):
        return image
    missing_x, missing_y = max(0, width - image.width), max(0, height - image.height)
    if missing_x or missing_y:
        border = (missing_x // 2, missing_y // 2, (missing_x + 1) // 2, (missing_y + 1) // 2)
        palette = image.getpalette() if image.mode == "P" else None
        bands = len(image.getbands())
        image = ImageOps.expand(image, border, fill if bands == 1 else (fill,) * bands)
        if palette is not None:
            image.putpalette(palette)
    left = round((image.width - width) / 2.0)
    top = round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))
