"""Digits drawn from fonts."""

from __future__ import annotations

import numpy as np
import pytest

from lattec_jax.demo.rendering import HELD_OUT_FONTS, TRAINING_FONTS, Renderer
from lattec_jax.runtime.errors import DataError


def test_same_seed_same_pictures() -> None:
    pictures, labels = Renderer().pictures(20, seed=3)
    again, labels_again = Renderer().pictures(20, seed=3)
    np.testing.assert_array_equal(pictures, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert (Renderer().pictures(20, seed=4)[0] != pictures).any()


def test_shape_range_and_balance() -> None:
    pictures, labels = Renderer(HELD_OUT_FONTS, size=24).pictures(50, seed=0)
    assert pictures.shape == (50, 24, 24) and pictures.dtype == np.uint8
    assert (np.bincount(labels) == 5).all()
    # Every picture shows something light on a ground that is mostly dark.
    assert (pictures.max(axis=(1, 2)) > 150).all()
    assert (np.median(pictures, axis=(1, 2)) < 150).all()


def test_held_out_faces_are_held_out() -> None:
    assert not set(HELD_OUT_FONTS) & set(TRAINING_FONTS)


def test_unknown_face_is_named() -> None:
    with pytest.raises(DataError, match="NoSuchFace"):
        Renderer(("DejaVuSans", "NoSuchFace"))
