"""FLYP's two kinds of pseudo-labels; its gradients are in `test_gradients.py`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from lattec_jax.methods import make_method
from lattec_jax.methods.base import Targets
from lattec_jax.methods.flyp import FLYP
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import ConfigError


def flyp(*overrides: str, name: str = "flyp", preset: str = "paper") -> FLYP:
    file = f"--config=configs/folder.py:preset={preset},method={name}"
    return make_method(parse(["train", file, *overrides])[0].method)


def test_the_presets_choose_the_pseudo_labels():
    assert flyp() == FLYP(pseudo_labels="current", loss_reduction="sum")
    released = flyp(preset="released_code")
    assert released == FLYP(pseudo_labels="zero_shot", loss_reduction="mean")
    one = flyp("--config.method.flyp.pseudo_labels=current", preset="released_code")
    assert one == FLYP(pseudo_labels="current", loss_reduction="mean")
    with pytest.raises(ConfigError, match=r"method\.flyp\.pseudo_labels: expected one of current"):
        flyp("--config.method.flyp.pseudo_labels=frozen")


def test_labels_and_what_they_require():
    images, class_weights = jnp.eye(3), jnp.eye(3)[jnp.array([2, 0, 1])]
    targets = Targets(zero_shot=jnp.array([0, 0, 1]), true=jnp.array([2, 2, 2]))
    current, frozen, oracle = FLYP(), FLYP(pseudo_labels="zero_shot"), FLYP(oracle=True)
    for method, labels, requires in (
        (current, [1, 2, 0], set()),
        (frozen, [0, 0, 1], set()),
        (oracle, [2, 2, 2], {"labels"}),
    ):
        found = method.labels(images, class_weights, targets, ())
        np.testing.assert_array_equal(found, [labels])
        assert method.requires == requires
        # Only what the current model predicts can say whether it collapses.
        assert method.predicted_label == (0 if method is current else None)
    released = flyp(name="flyp_oracle", preset="released_code")
    assert released.requires == {"labels"}  # true labels under either preset
