"""The adjustments of color, against PIL and torchvision."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from lattec_jax.training import augmentation


@functools.cache
def colors() -> np.ndarray:
    """Random colors, nearly gray ones, grays, pure ones and black and white: `[40, 100, 3]`."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (40, 100, 3))
    image[:8] = np.clip(image[:8, :, :1] + rng.integers(-3, 4, (8, 100, 3)), 0, 255)
    image[8:10] = image[8:10, :, :1]
    image[10:14] = 255 * rng.integers(0, 2, (4, 100, 3))
    image[14:18, :, 0] = image[14:18, :, 1]  # two channels alike
    return image.astype(np.uint8)


FACTORS = (0.0, 0.37, 0.5, 0.8137, 1.0, 1.193, 1.5, 1.9)
SHIFTS = (-0.5, -0.1, -0.0731, 0.0, 0.03, 0.1, 0.25, 0.5)


def agrees(found: jax.Array, expected: Image.Image) -> None:
    difference = np.abs(np.asarray(found) - np.asarray(expected, np.float32))
    assert difference.max() <= 1
    assert difference.mean() < 0.05


@pytest.mark.parametrize("which", range(4))
def test_each_adjustment_is_torchvision_s_to_a_gray_level(torchvision, which):
    functional = torchvision.functional
    ours = augmentation.ADJUSTMENTS[which]
    theirs = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )[which]
    image = Image.fromarray(colors())
    values = SHIFTS if which == 3 else FACTORS
    adjusted = jax.jit(jax.vmap(ours, in_axes=(None, 0)))(
        jnp.asarray(colors(), jnp.float32), jnp.array(values)
    )
    for found, value in zip(adjusted, values, strict=True):
        agrees(found, theirs(image, value))


def test_hue_and_saturation_are_pil_s_for_every_kind_of_color(torchvision):
    """All combinations of every fifth level: a hue step is six gray levels, so none may be off."""
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(52, -1, 3)
    found = jax.jit(augmentation.adjust_hue)(cube.astype(np.float32), 0.05)
    agrees(found, torchvision.functional.adjust_hue(Image.fromarray(cube), 0.05))


def test_jitter_in_every_order_is_torchvision_s(torchvision):
    functional = torchvision.functional
    orders = np.array(list(itertools.permutations(range(4))), np.int32)
    factors = np.random.default_rng(2).uniform(0.5, 1.5, (len(orders), 4)).astype(np.float32)
    factors[:, 3] = factors[:, 3] * 0.2 - 0.2  # from −0.1 to 0.1
    image = colors()
    ours = jax.jit(jax.vmap(augmentation.jitter, in_axes=(None, 0, 0)))(
        image.astype(np.float32), factors, orders
    )
    steps = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    ]
    changes = []
    for found, given, order in zip(ours, factors, orders, strict=True):
        expected = Image.fromarray(image)
        for which in order:
            expected = steps[which](expected, float(given[which]))
        difference = np.abs(np.asarray(found) - np.asarray(expected, np.float32))
        # A level that one step leaves open may be amplified by the next ones.
        assert (difference > 1).mean() < 0.02
        assert difference.mean() < 0.1
        changes.append(np.asarray(expected))
    assert np.std(changes, axis=0).max() > 20  # the orders and factors do make a difference


def test_luminance_is_pil_s():
    image = colors()
    found = np.asarray(augmentation.luminance(jnp.asarray(image, jnp.float32)))
    np.testing.assert_array_equal(found[..., 0], np.asarray(Image.fromarray(image).convert("L")))


@pytest.mark.full
def test_color_jitter_touches_the_share_that_it_is_told_to():
    images = jnp.asarray(np.broadcast_to(colors()[:4, :8], (400, 4, 8, 3)), jnp.float32)
    apply = jax.jit(augmentation.color_jitter)

    def touched(probability: float) -> np.ndarray:
        strength = (0.5, 0.5, 0.5, 0.1)
        params = augmentation.sample_color_jitter_params(
            jax.random.key(3), 400, strength, probability
        )
        found = apply(images, params)
        return np.asarray((found != images).any(axis=(1, 2, 3)))

    assert not touched(0.0).any()
    assert touched(1.0).all()
    assert abs(touched(0.8).mean() - 0.8) < 0.08  # four standard deviations


def test_color_jitter_draws_torchvision_s_factors_and_orders():
    strength = (0.4, 1.5, 0.2, 0.1)  # a strength above 1 does not go below black
    params = augmentation.sample_color_jitter_params(jax.random.key(4), 2400, strength, 1.0)
    bounds = [(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1)]
    for found, (low, high) in zip(np.asarray(params.factors).T, bounds, strict=True):
        assert scipy.stats.kstest(found, "uniform", args=(low, high - low)).pvalue > 1e-3
    assert np.abs(np.corrcoef(np.asarray(params.factors).T) - np.eye(4)).max() < 0.1
    # Every image has an order of its own, all 24 equally often.
    orders, counts = np.unique(np.asarray(params.orders), axis=0, return_counts=True)
    np.testing.assert_array_equal(orders, list(itertools.permutations(range(4))))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
