"""Digits drawn from fonts."""

from __future__ import annotations

import numpy as np
import pytest

from lattec_jax.demo.rendering import HELD_OUT_FONTS, TRAINING_FONTS, Renderer
from lattec_jax.runtime.errors import DataError


def test_same_seed_same_images() -> None:
    images, labels = Renderer().images(20, seed=3)
    again, labels_again = Renderer().images(20, seed=3)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert (Renderer().images(20, seed=4)[0] != images).any()


def test_shape_range_and_balance() -> None:
    images, labels = Renderer(HELD_OUT_FONTS, size=24).images(50, seed=0)
    assert images.shape == (50, 24, 24) and images.dtype == np.uint8
    assert (np.bincount(labels) == 5).all()
    # Every image shows something light on a ground that is mostly dark.
    assert (images.max(axis=(1, 2)) > 150).all()
    assert (np.median(images, axis=(1, 2)) < 150).all()


def test_held_out_fonts_are_not_used_for_training() -> None:
    assert not set(HELD_OUT_FONTS) & set(TRAINING_FONTS)


def test_unknown_font_is_named() -> None:
    with pytest.raises(DataError, match="NoSuchFace"):
        Renderer(("DejaVuSans", "NoSuchFace"))
