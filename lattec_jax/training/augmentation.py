"""Training augmentation on the device, as open_clip does it with torchvision and PIL.

Images come whole (uint8, padded to a common size) and leave as crops of the model's size. Every
step rounds to whole gray levels where PIL does, so that crops agree with PIL's to a gray level.

Sources: torchvision 0.28 `transforms.RandomResizedCrop` and `ColorJitter`; Pillow
`libImaging/Resample.c` (bicubic with antialiasing, a = −0.5), `Blend.c`, `Convert.c`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8
from ml_collections import ConfigDict

Scalar = float | Float[Array, ""]
ATTEMPTS = 10  # of torchvision, before it falls back to a central crop


class Augmentation(NamedTuple):
    """Settings; `config.augment` explains them. All static."""

    scale: tuple[float, float]
    ratio: tuple[float, float]
    color_jitter: tuple[float, float, float, float]
    color_jitter_probability: float
    grayscale_probability: float
    flip_probability: float

    @classmethod
    def from_config(cls, settings: ConfigDict) -> Augmentation:
        """Read the section `config.augment`, which has the same keys."""
        lists = {key: settings[key] for key in ("scale", "ratio", "color_jitter")}
        return cls(**{**settings, **{key: tuple(map(float, x)) for key, x in lists.items()}})


class JitterParams(NamedTuple):
    """The random parameters of `ColorJitter` for each of B images."""

    factors: Float[Array, "B 4"]  # of brightness, contrast, saturation and hue
    orders: Int[Array, "B 4"]  # in which these four are applied
    chosen: Bool[Array, " B"]  # the others stay as they are


class AugmentParams(NamedTuple):
    """The random parameters of the crops of B images; None where a setting turns a part off."""

    boxes: Int[Array, "B 4"]  # top, left, height and width, in pixels
    flip: Bool[Array, " B"] | None  # left to right
    jitter: JitterParams | None
    gray: Bool[Array, " B"] | None


def sample_augment_params(
    key: Key[Array, ""], sizes: Int[Array, "B 2"], settings: Augmentation
) -> AugmentParams:
    """Draw the parameters of a full batch, whose microbatches are then cropped one by one.

    Args:
        sizes: height and width of each image in pixels, without its padding.
    """
    crop_key, jitter_key, gray_key = jax.random.split(key, 3)
    batch = sizes.shape[0]
    boxes = random_boxes(crop_key, sizes, settings.scale, settings.ratio)
    flip = jitter_params = gray = None
    if settings.flip_probability > 0:
        # Folded in, so that the other parameters are the same with and without flips.
        flip_key = jax.random.fold_in(key, 3)
        flip = jax.random.bernoulli(flip_key, settings.flip_probability, (batch,))
    if any(settings.color_jitter) and settings.color_jitter_probability > 0:
        jitter_params = sample_color_jitter_params(
            jitter_key, batch, settings.color_jitter, settings.color_jitter_probability
        )
    if settings.grayscale_probability > 0:
        gray = jax.random.bernoulli(gray_key, settings.grayscale_probability, (batch,))
    return AugmentParams(boxes, flip, jitter_params, gray)


def apply_augment(
    images: UInt8[Array, "B H W 3"], params: AugmentParams, size: tuple[int, int]
) -> Float[Array, "B S T 3"]:
    """Return crops in [0, 1] of this size, before mean and deviation are applied; each image by
    itself.

    Args:
        images: padded at the bottom and on the right.
    """
    images = crop_and_resize(images, params.boxes, size)
    if params.flip is not None:
        images = jnp.where(params.flip[:, None, None, None], images[:, :, ::-1], images)
    if params.jitter is not None:
        images = color_jitter(images, params.jitter)
    if params.gray is not None:
        images = jnp.where(params.gray[:, None, None, None], luminance(images), images)
    return images / 255


def random_boxes(
    key: Key[Array, ""],
    sizes: Int[Array, "B 2"],
    scale: tuple[Scalar, Scalar],
    ratio: tuple[Scalar, Scalar],
) -> Int[Array, "B 4"]:
    """Draw crops as `RandomResizedCrop.get_params` does.

    Returns:
        Top, left, height and width in pixels. Ten draws of area and ratio are tried; where none
        fits the image, the largest central crop within the bounds of the ratio is taken.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    batch = sizes.shape[0]
    height, width = sizes[:, 0], sizes[:, 1]
    area = (height * width).astype(jnp.float32)[:, None] * jax.random.uniform(
        area_key, (batch, ATTEMPTS), minval=scale[0], maxval=scale[1]
    )
    aspect = jnp.exp(
        jax.random.uniform(
            ratio_key, (batch, ATTEMPTS), minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])
        )
    )
    tried_w = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)  # [B, attempts]
    tried_h = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (
        (tried_w > 0) & (tried_w <= width[:, None]) & (tried_h > 0) & (tried_h <= height[:, None])
    )
    first = jnp.argmax(fits, axis=1)[:, None]
    found = fits.any(axis=1)
    central_h, central_w = _central_size(height, width, ratio)
    h = jnp.where(found, jnp.take_along_axis(tried_h, first, axis=1)[:, 0], central_h)
    w = jnp.where(found, jnp.take_along_axis(tried_w, first, axis=1)[:, 0], central_w)
    top = jax.random.randint(top_key, (batch,), 0, height - h + 1)
    left = jax.random.randint(left_key, (batch,), 0, width - w + 1)
    top = jnp.where(found, top, (height - h) // 2)
    left = jnp.where(found, left, (width - w) // 2)
    return jnp.stack([top, left, h, w], axis=1)


def _central_size(
    height: Int[Array, " B"], width: Int[Array, " B"], ratio: tuple[Scalar, Scalar]
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """The largest crop whose width over height is within `ratio`."""
    exact_h = width.astype(jnp.float32) / ratio[0]
    exact_w = height.astype(jnp.float32) * ratio[1]
    aspect = width / height
    h = jnp.where(aspect < ratio[0], jnp.round(exact_h).astype(jnp.int32), height)
    w = jnp.where(aspect > ratio[1], jnp.round(exact_w).astype(jnp.int32), width)
    # Rounding must not leave an image of one row or column without pixels, or exceed it.
    return jnp.clip(h, 1, height), jnp.clip(w, 1, width)


def _bicubic(x: jax.Array) -> jax.Array:
    """The cubic convolution kernel with a = −0.5, zero from distance 2 on."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def resampling_weights(
    start: Int[Array, " B"], length: Int[Array, " B"], extent: int, size: int
) -> Float[Array, "B S E"]:
    """How much each of `extent` pixels counts in each of `size` output pixels, for the interval
    of `length` pixels from `start`; each row sums to 1 and is zero outside of the interval."""
    step = (length / size)[:, None, None]  # input pixels per output pixel
    center = (jnp.arange(size, dtype=jnp.float32) + 0.5)[None, :, None] * step  # [B, S, 1]
    pixel = (jnp.arange(extent)[None, :] - start[:, None])[:, None, :]  # [B, 1, E]
    weights = _bicubic((pixel.astype(jnp.float32) + 0.5 - center) / jnp.maximum(step, 1.0))
    weights = jnp.where((pixel >= 0) & (pixel < length[:, None, None]), weights, 0.0)
    return weights / weights.sum(axis=2, keepdims=True)


def crop_and_resize(
    images: UInt8[Array, "B H W 3"], boxes: Int[Array, "B 4"], size: tuple[int, int]
) -> Float[Array, "B S T 3"]:
    """Cut out `boxes` and resize them by antialiased bicubic, as PIL's `crop` and `resize`.

    Returns:
        Whole gray levels from 0 to 255. PIL rounds after the horizontal and after the vertical
        pass, and so does this. (Pillow 13 takes the vertical pass first where that is cheaper, pull
        request 9549, which shows at hard edges; setup.py asks for an earlier one.)
    """
    top, left, height, width = boxes.T
    across = resampling_weights(left, width, images.shape[2], size[1])  # [B, T, W]
    down = resampling_weights(top, height, images.shape[1], size[0])  # [B, S, H]
    exact = jax.lax.Precision.HIGHEST
    rows = jnp.einsum("bhwc,btw->bhtc", images.astype(jnp.float32), across, precision=exact)
    rows = _whole(rows)
    return _whole(jnp.einsum("bhtc,bsh->bstc", rows, down, precision=exact))


def _whole(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)


def luminance(images: Float[Array, "*batch S T 3"]) -> Float[Array, "*batch S T 1"]:
    """PIL's conversion to "L" (ITU-R 601-2): whole gray levels, in integers as PIL computes it."""
    weights = jnp.broadcast_to(jnp.array([19595, 38470, 7471]), images.shape)
    total = jnp.sum(images.astype(jnp.int32) * weights, axis=-1, keepdims=True)
    return ((total + 0x8000) >> 16).astype(images.dtype)


def _blend(one: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """PIL's `Image.blend`, which cuts fractions off."""
    return jnp.floor(jnp.clip(one + factor * (other - one), 0, 255))


def adjust_brightness(image: Float[Array, "S T 3"], factor: jax.Array) -> Float[Array, "S T 3"]:
    """Blend with black."""
    return _blend(jnp.zeros_like(image), image, factor)


def adjust_contrast(image: Float[Array, "S T 3"], factor: jax.Array) -> Float[Array, "S T 3"]:
    """Blend with the mean luminance."""
    mean = jnp.floor(jnp.mean(luminance(image)) + 0.5)
    return _blend(jnp.full_like(image, mean), image, factor)


def adjust_saturation(image: Float[Array, "S T 3"], factor: jax.Array) -> Float[Array, "S T 3"]:
    """Blend with the luminance."""
    return _blend(jnp.broadcast_to(luminance(image), image.shape), image, factor)


def _to_byte(fraction: jax.Array) -> jax.Array:
    """Return 255 times a fraction, rounded down as if the product were exact."""
    nearest = jnp.round(fraction * 255)
    too_large = fraction * 256 - nearest < fraction
    return nearest - too_large.astype(nearest.dtype)


def adjust_hue(image: Float[Array, "S T 3"], shift: jax.Array) -> Float[Array, "S T 3"]:
    """Turn the hue by `shift` full circles, in PIL's 8-bit HSV."""
    red, green, blue = jnp.moveaxis(image, -1, 0)
    value, least = image.max(axis=-1), image.min(axis=-1)
    range_ = value - least
    middle = red + green + blue - value - least
    colored = range_ > 0
    offset = (value - middle) / jnp.where(colored, range_, 1.0)
    # One rounding in each case, as in PIL: a hue that falls on a whole step must not slip below it.
    hue = jnp.where(
        red == value,
        jnp.where(blue == least, 1 - offset, offset - 1),
        jnp.where(
            green == value,
            jnp.where(blue == least, 1 + offset, 3 - offset),
            jnp.where(red == least, 3 + offset, 5 - offset),
        ),
    )
    six = jnp.where(colored, 6.0, 1.0)  # no constant, or XLA multiplies by a rounded 1/6
    hue = jnp.where(colored, _to_byte(hue / six + (hue < 0).astype(hue.dtype)), 0.0)
    saturation = _to_byte(range_ / jnp.maximum(value, 1.0))
    # torchvision adds the shift as an unsigned byte, which wraps around.
    hue = jnp.mod(hue + jnp.trunc(shift * 255), 256)
    sector = hue * 6 / 255
    index = jnp.floor(sector)
    fraction, saturation = sector - index, saturation / 255
    p = jnp.round(value * (1 - saturation))
    q = jnp.round(value * (1 - saturation * fraction))
    t = jnp.round(value * (1 - saturation * (1 - fraction)))
    by_sector = [
        (value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q),
    ]  # fmt: skip
    candidates = jnp.stack([jnp.stack(channels, axis=-1) for channels in by_sector])  # [6, S, T, 3]
    index = jnp.mod(index, 6).astype(jnp.int32)[None, ..., None]
    return jnp.take_along_axis(candidates, index, axis=0)[0]


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def jitter(
    image: Float[Array, "S T 3"], factors: Float[Array, " 4"], order: Int[Array, " 4"]
) -> Float[Array, "S T 3"]:
    """Apply brightness, contrast, saturation and hue (`factors`) in the given order."""
    for position in range(4):
        which = order[position]
        image = jax.lax.switch(which, ADJUSTMENTS, image, factors[which])
    return image


def sample_color_jitter_params(
    key: Key[Array, ""],
    batch: int,
    strength: tuple[float, float, float, float],
    probability: float,
) -> JitterParams:
    """Draw as torchvision's `ColorJitter` does; `probability`: of each image to be changed."""
    factor_key, order_key, choice_key = jax.random.split(key, 3)
    bounds = jnp.array([*[(max(0.0, 1 - s), 1 + s) for s in strength[:3]],
                        (-strength[3], strength[3])])  # fmt: skip
    factors = jax.random.uniform(factor_key, (batch, 4), minval=bounds[:, 0], maxval=bounds[:, 1])
    orders = jax.vmap(lambda k: jax.random.permutation(k, 4))(jax.random.split(order_key, batch))
    return JitterParams(factors, orders, jax.random.bernoulli(choice_key, probability, (batch,)))


def color_jitter(images: Float[Array, "B S T 3"], params: JitterParams) -> Float[Array, "B S T 3"]:
    """torchvision's `ColorJitter`, with parameters for each image."""
    jittered = jax.vmap(jitter)(images, params.factors, params.orders)
    return jnp.where(params.chosen[:, None, None, None], jittered, images)
