"""The method's pure functions against the float64 reference."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattec_jax.methods.base import Features, Targets
from lattec_jax.methods.latteclip import (
    LatteCLIP,
    Prototypes,
    mix_texts,
    mixer_weights,
    update_prototypes,
)
from tests.methods import reference

B, C, D, K = 24, 7, 16, 2


@dataclasses.dataclass
class Case:
    """Random features of one batch."""

    images: np.ndarray
    class_texts: np.ndarray
    descriptions: np.ndarray
    present: np.ndarray
    prototypes: np.ndarray
    zero_shot: np.ndarray
    logit_scale: float = 14.3

    def features(self, labels: np.ndarray, dtype: type) -> Features:
        """As the step hands them to the method."""
        return Features(
            jnp.asarray(self.images, dtype),
            jnp.asarray(self.class_texts, dtype)[labels],
            jnp.asarray(self.descriptions, dtype),
            jnp.asarray(self.present),
            jnp.asarray(self.logit_scale, dtype),
        )


@pytest.fixture
def case() -> Case:
    rng = np.random.default_rng(7)
    present = rng.random((B, K)) > 0.3
    present[0], present[1] = False, True
    return Case(
        images=reference.unit(rng.normal(size=(B, D))),
        class_texts=reference.unit(rng.normal(size=(C, D))),
        descriptions=reference.unit(rng.normal(size=(B, K, D))),
        present=present,
        prototypes=reference.unit(rng.normal(size=(C, D))),
        # Class 6 is missing, class 0 is there once.
        zero_shot=np.array([0, *rng.integers(1, C - 1, B - 1)], np.int32),
    )


def run(method: LatteCLIP, case: Case, dtype: type) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss, prototypes and current labels by our code."""
    state = Prototypes(*(jnp.asarray(case.prototypes, dtype),) * 2)
    images = jnp.asarray(case.images, dtype)
    labels = method.labels(images, state.current, Targets(jnp.asarray(case.zero_shot)), state)
    loss, aux = method.loss(case.features(np.asarray(labels), dtype), labels, state)
    moved, _ = method.update(state, labels, aux, jnp.asarray(False))
    return float(loss), np.asarray(moved.current), np.asarray(labels[-1])


@pytest.mark.parametrize(
    ("bits", "tolerance"), [(64, 1e-13), pytest.param(32, 2e-6, marks=pytest.mark.full)]
)
@pytest.mark.parametrize(("alpha", "momentum"), [(0.99, 0.99), (0.3, 0.0), (0.0, 0.5)])
def test_step_equals_the_reference(case, bits, tolerance, alpha, momentum):
    with jax.enable_x64(bits == 64):
        dtype = jnp.float64 if bits == 64 else jnp.float32
        loss, moved, current = run(LatteCLIP(alpha, momentum), case, dtype)
    expected, expected_moved, expected_current = reference.step(
        case.images,
        case.class_texts,
        case.descriptions,
        case.present,
        case.prototypes,
        case.zero_shot,
        case.logit_scale,
        alpha,
        momentum,
    )
    np.testing.assert_array_equal(current, expected_current)
    assert abs(loss - expected) <= tolerance * max(1.0, abs(expected))
    np.testing.assert_allclose(moved, expected_moved, atol=tolerance, rtol=0)
    assert np.abs(moved - case.prototypes).max() > 1e-5  # something did move


@pytest.mark.parametrize("update", ["sequential", "joint"])
@pytest.mark.parametrize("names", [("zero_shot",), ("current",)])
@pytest.mark.parametrize("mixer", [True, False])
@pytest.mark.parametrize(("alpha", "momentum"), [(0.99, 0.99), (0.0, 0.0)])
def test_ablations_equal_the_reference(case, update, names, mixer, alpha, momentum):
    """Table 3; with one label both rules of the update are the same."""
    method = LatteCLIP(alpha, momentum, label_names=names, use_mixer=mixer, prototype_update=update)
    with jax.enable_x64():
        loss, moved, label = run(method, case, jnp.float64)
    expected, expected_moved, current = reference.step(
        case.images,
        case.class_texts,
        case.descriptions,
        case.present,
        case.prototypes,
        case.zero_shot,
        case.logit_scale,
        alpha,
        momentum,
        names,
        mixer,
    )
    np.testing.assert_array_equal(label, case.zero_shot if "zero_shot" in names else current)
    assert loss == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(moved, expected_moved, atol=1e-13, rtol=0)


def test_without_momentum_a_prototype_becomes_its_new_text(case):
    """α = μ = 0: nothing of the old prototype is left, but where an image has no text at all."""
    method = LatteCLIP(0.0, 0.0, class_text=False, label_names=("zero_shot",))
    _, moved, _ = run(method, case, jnp.float32)
    image = 0  # the only one of class 0, and without texts
    np.testing.assert_allclose(moved[0], case.prototypes[0], atol=1e-6)
    case.present[image, 1] = True
    _, moved, _ = run(method, case, jnp.float32)
    np.testing.assert_allclose(moved[0], case.descriptions[image, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("bits", "tolerance"), [(64, 1e-13), pytest.param(32, 2e-6, marks=pytest.mark.full)]
)
def test_weights_and_mix_equal_the_reference(case, bits, tolerance):
    with jax.enable_x64(bits == 64):
        dtype = jnp.float64 if bits == 64 else jnp.float32
        texts = jnp.asarray(case.descriptions, dtype)
        prototypes = jnp.asarray(case.prototypes, dtype)
        weights = mixer_weights(texts, prototypes)
        mixed = mix_texts(texts, weights, prototypes[case.zero_shot], 0.7)
    for i in range(B):
        expected = [reference.weight(t, case.prototypes) for t in case.descriptions[i]]
        np.testing.assert_allclose(weights[i], expected, atol=tolerance, rtol=0)
        prototype = case.prototypes[case.zero_shot[i]]
        row = reference.mixed(list(case.descriptions[i]), expected, prototype, 0.7)
        np.testing.assert_allclose(mixed[i], row, atol=tolerance, rtol=0)


def test_no_gradient_flows_through_weights_or_prototypes(case):
    texts = jnp.asarray(case.descriptions, jnp.float32)
    prototypes = jnp.asarray(case.prototypes, jnp.float32)

    def total(texts, prototypes):
        weights = mixer_weights(texts, prototypes)
        return jnp.sum(mix_texts(texts, weights, prototypes[case.zero_shot], 0.5) ** 2)

    by_texts, by_prototypes = jax.grad(total, argnums=(0, 1))(texts, prototypes)
    assert float(jnp.abs(by_prototypes).max()) == 0
    fixed = mixer_weights(texts, prototypes)  # the same gradient as with constant weights
    constant = jax.grad(
        lambda t: jnp.sum(mix_texts(t, fixed, prototypes[case.zero_shot], 0.5) ** 2)
    )(texts)
    np.testing.assert_allclose(by_texts, constant, rtol=1e-6)


def test_an_image_without_texts_keeps_its_prototype(case):
    method = LatteCLIP(0.3, 0.5, class_text=False)
    state = Prototypes(*(jnp.asarray(case.prototypes, jnp.float32),) * 2)
    labels = jnp.stack([jnp.asarray(case.zero_shot)] * 2)
    loss, aux = method.loss(case.features(np.asarray(labels), jnp.float32), labels, state)
    assert np.isfinite(loss)
    np.testing.assert_allclose(aux["mixed"][0][0], case.prototypes[case.zero_shot[0]], atol=1e-6)
    # Image 1 has both descriptions and moves away from its prototype.
    assert np.abs(aux["mixed"][0][1] - case.prototypes[case.zero_shot[1]]).max() > 0.01


def test_absent_classes_do_not_move(case):
    prototypes = jnp.asarray(case.prototypes, jnp.float32)
    moved = update_prototypes(prototypes, prototypes[:3] * 0.5, jnp.array([0, 1, 1]), 0.5)
    np.testing.assert_array_equal(moved[2:], prototypes[2:])
    assert np.abs(moved[1] - prototypes[1]).max() > 1e-3


def test_released_update_takes_one_mean_over_both_labels(case):
    method = LatteCLIP(0.9, 0.0, prototype_update="joint", loss_reduction="mean")
    loss, moved, current = run(method, case, jnp.float32)
    paper_loss, _, _ = run(LatteCLIP(0.9, 0.0), case, jnp.float32)
    assert loss == pytest.approx(paper_loss / 2, rel=1e-6)
    both = np.concatenate([case.zero_shot, current])
    t_bar = []
    for labels in (case.zero_shot, current):
        for i, label in enumerate(labels):
            texts = [case.class_texts[label]]
            texts += [t for t, p in zip(case.descriptions[i], case.present[i], strict=True) if p]
            weights = [reference.weight(t, case.prototypes) for t in texts]
            t_bar.append(reference.mixed(texts, weights, case.prototypes[label], 0.9))
    expected = reference.update(case.prototypes, np.array(t_bar), both, 0.0)
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_weights_by_the_prototypes_of_the_epochs_start(case):
    """Three steps an epoch: the weights of each step are by the prototypes before the first."""
    method = LatteCLIP(0.5, 0.2, mixer_prototypes="epoch_start")
    state = Prototypes(*(jnp.asarray(case.prototypes, jnp.float32),) * 2)
    labels = jnp.stack([jnp.asarray(case.zero_shot)] * 2)
    features = case.features(np.asarray(labels), jnp.float32)
    for step in range(7):
        if step % 3 == 0:
            at_start = state.current
        _, aux = method.loss(features, labels, state)
        expected = mixer_weights(features.descriptions, at_start) * np.float32(case.present)
        np.testing.assert_array_equal(aux["description_weights"], expected)
        before = state.current
        state, _ = method.update(state, labels, aux, jnp.asarray(step % 3 == 2))
        assert np.abs(state.current - before).max() > 1e-6


def test_ablations_drop_what_they_name(case):
    only_zero_shot = LatteCLIP(0.9, 0.9, label_names=("zero_shot",))
    state = Prototypes(*(jnp.asarray(case.prototypes, jnp.float32),) * 2)
    targets = Targets(jnp.asarray(case.zero_shot))
    labels = only_zero_shot.labels(jnp.asarray(case.images), state.current, targets, state)
    assert labels.shape == (1, B)
    only_current = LatteCLIP(0.9, 0.9, label_names=("current",), description_kinds=())
    assert only_current.requires == frozenset()
    even = LatteCLIP(0.9, 0.9, use_mixer=False)
    both = jnp.stack([jnp.asarray(case.zero_shot)] * 2)
    _, aux = even.loss(case.features(np.asarray(both), jnp.float32), both, state)
    np.testing.assert_array_equal(aux["class_text_weights"], 1.0)
    np.testing.assert_array_equal(aux["description_weights"], case.present.astype(np.float32))
