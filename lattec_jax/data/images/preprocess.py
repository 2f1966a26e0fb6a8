"""From an image file to the pixels that the image tower is evaluated on.

`Preprocess.pixels` does what `open_clip.image_transform(..., is_train=False)` does before ToTensor
and Normalize, operation by operation and to the pixel, with Pillow alone: the image is resized
and cropped in its own mode and turned into RGB only then. The order is visible in the result:
palette images are resized by nearest neighbor and transparent ones with premultiplied alpha.
"""

from __future__ import annotations

import dataclasses
import io
import os
import struct
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

# Only these decoders are tried, whatever a file calls itself: others (EPS) start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_READ_AT_ONCE = 2**26  # bytes of a file, at most
ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
_Side = Annotated[int, Interval(ge=1, le=2**14)]
_Positive = Annotated[float, Gt(0)]
_Triple = tuple[float, float, float]

# What Pillow raises on damaged files: the documented OSError (UnidentifiedImageError is one) and
# DecompressionBombError, and what its decoders let through (found by damaging files at random).
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # an error only where warnings are made errors
)


class UnreadableImage(DataError):
    """An image file that cannot be decoded. `reason` is one line without the path."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"cannot read the image {os.fspath(path)}: {reason}")
        self.reason = reason


@contextmanager
def image_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what Pillow raises on a damaged file into `UnreadableImage`."""
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
    """Open and decode an image as `PIL.Image.open` gives it to users of open_clip.

    That is: in its own mode, the first frame, and without applying the EXIF orientation (except to
    TIFF, where Pillow itself applies it).

    Raises:
        UnreadableImage: the file is missing, damaged, not an image, or far too large.
    """
    with image_errors(path), _opened(path) as image:
        if 0 in image.size:
            raise ValueError(f"a side of length 0 (width {image.width}, height {image.height})")
        image.load()
        return image


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (width, height) as the header of an image states them.

    Raises:
        UnreadableImage: see `open_image`.
    """
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
            # Pillow reads in small pieces, and threads queue for each.
            content = io.BytesIO(file.read(size))
        with Image.open(content, formats=FORMATS) as image:
            yield image


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How a model wants its images. `size` is (height, width); mean and deviation are of RGB."""

    __pydantic_config__ = STRICT

    size: tuple[_Side, _Side]
    mean: _Triple
    std: tuple[_Positive, _Positive, _Positive]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: Annotated[int, Interval(ge=0, le=255)] = 0  # of the borders that "longest" adds

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The `[H, W, 3]` uint8 pixels of one image, before normalization.

        Where open_clip fails because a very thin image would shrink to nothing ("longest"), the
        thin side is one pixel here.
        """
        height, width = self.size
        filter_ = INTERPOLATIONS[self.interpolation]
        if self.resize_mode == "squash":
            image = _resize(image, height, width, filter_)
        elif self.resize_mode == "longest":
            image = _resize(image, *_kept_ratio(image, self.size, max), filter_)
            image = _center(image, height, width, self.fill_color)
        elif height == width:
            image = _resize(image, *_shortest_side(image, height), filter_)
            image = _center(image, height, width, 0)
        else:
            # open_clip does not pass the interpolation on here: always bicubic.
            fitted = _kept_ratio(image, self.size, min)
            image = _resize(image, *fitted, Image.Resampling.BICUBIC)
            image = _center(image, height, width, 0)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any, where: str = "the preprocessing configuration") -> Preprocess:
        """Read what `to_dict` wrote.

        Raises:
            WeightsError: keys are missing or unknown, or values are out of range.
        """
        advice = "convert the weights again with python -m convert.openclip_to_flax"
        return validate(cls, values, where, WeightsError, advice)

    @classmethod
    def from_open_clip(
        cls,
        preprocess_cfg: Mapping[str, Any],
        image_size: int | tuple[int, int],
        where: str = "preprocess_cfg",
    ) -> Preprocess:
        """Read open_clip's `preprocess_cfg`; keys that it lacks get open_clip's defaults.

        Args:
            preprocess_cfg: of the pretrained tag or of `open_clip_config.json`.
            image_size: the image tower's, which overrides a `size` in the configuration as in
                open_clip.
            where: of the configuration, for messages.

        Raises:
            WeightsError: a value is not one that is implemented.
        """
        given = {key: value for key, value in preprocess_cfg.items() if value is not None}
        advice = "choose weights of one of open_clip's models, or correct the configuration"
        read = validate(_OpenClipPreprocess, given, where, WeightsError, advice)
        mean, std = (v if isinstance(v, tuple) else (v, v, v) for v in (read.mean, read.std))
        return cls(
            size=(image_size, image_size) if isinstance(image_size, int) else tuple(image_size),
            mean=mean,
            std=std,
            # open_clip evaluates a model trained with "random" interpolation with bicubic.
            interpolation="bicubic" if read.interpolation == "random" else read.interpolation,
            resize_mode=read.resize_mode,
            fill_color=read.fill_color,
        )


@dataclasses.dataclass(frozen=True)
class _OpenClipPreprocess:
    """What is read of open_clip's `preprocess_cfg`, with its defaults."""

    __pydantic_config__ = STRICT_OPEN
    mode: Literal["RGB"] = "RGB"
    mean: float | _Triple = (0.48145466, 0.4578275, 0.40821073)
    std: _Positive | tuple[_Positive, _Positive, _Positive] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: Annotated[int, Interval(ge=0, le=255)] = 0


def _resize(image: Image.Image, height: int, width: int, filter_: int) -> Image.Image:
    """Pillow's antialiased resize; an image that has the size already is left alone."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), filter_)


def _shortest_side(image: Image.Image, side: int) -> tuple[int, int]:
    """(height, width) with the shortest side equal to `side`; the other is rounded down."""
    width, height = image.size
    if width <= height:
        return int(side * height / width), side
    return side, int(side * width / height)


def _kept_ratio(image: Image.Image, size: tuple[int, int], choose: Any) -> tuple[int, int]:
    """(height, width) at which the image fits into (`max`) or covers (`min`) `size`."""
    ratio = choose(image.height / size[0], image.width / size[1])
    return max(1, round(image.height / ratio)), max(1, round(image.width / ratio))


def _center(image: Image.Image, height: int, width: int, fill: int) -> Image.Image:
    """Cut out the center; where the image is smaller, first add borders of color `fill`."""
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
