"""Our towers against open_clip's, on the same randomized weights."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattec_jax.data.text.bucketing import text_lengths
from lattec_jax.models.checkpoint import expected_shapes
from lattec_jax.models.clip import bind, define, initial_params
from lattec_jax.models.config import CLIPConfig
from lattec_jax.runtime import sharding
from tests.dummy import dummy_checkpoint
from tests.openclip_models import (
    ARCHITECTURES,
    flat_params,
    model_cfg,
    random_open_clip,
    shrunken,
)


@functools.cache
def extractor(config: CLIPConfig, dtype: type = jnp.float32) -> tuple[Callable, Callable]:
    """Return both jitted towers, compiled once per configuration, without a mesh."""
    definition = define(config, dtype=dtype)
    return (
        jax.jit(lambda p, x: bind(definition, p).encode_image(x)),
        jax.jit(lambda p, x: bind(definition, p).encode_text(x)),
    )


def random_tokens(rng: np.random.Generator, config: CLIPConfig, count: int) -> np.ndarray:
    """Return token matrices as from a tokenizer: start, words, end, padding."""
    text = config.text
    end = text.eos_id if text.pool == "eos" else text.vocab_size - 1
    tokens = np.zeros((count, text.context_length), np.int32)
    for row in tokens:
        length = rng.integers(2, text.context_length + 1)
        row[:length] = rng.integers(3, text.vocab_size - 2, length)
        row[length - 1] = end
    return tokens


def compare(config: dict, batch: int) -> None:
    """Compare the unit features of both towers within 1e-5."""
    torch = pytest.importorskip("torch")
    model = random_open_clip(config)
    ours, params = flat_params(model, config)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, *ours.vision.image_size, 3)).astype(np.float32)
    tokens = random_tokens(rng, ours, batch)
    with torch.no_grad():
        nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        image_features = model.encode_image(nchw, normalize=True).numpy()
        text_features = model.encode_text(torch.from_numpy(tokens).long(), normalize=True).numpy()
    encode_image, encode_text = extractor(ours)
    assert np.abs(encode_image(params, images) - image_features).max() <= 1e-5
    assert np.abs(encode_text(params, tokens) - text_features).max() <= 1e-5
    # The inputs have different features, so the comparison is meaningful.
    assert np.abs(image_features[0] - image_features[1]).max() > 1e-3
    assert np.abs(text_features[0] - text_features[1]).max() > 1e-3


@pytest.mark.full
def test_full_vit_b_32_equals_open_clip():
    compare(model_cfg("ViT-B-32"), batch=4)


# The flags that no model of open_clip has, together (those that one has: test_every_model.py).
VISION = {"image_size": [32, 48], "norm_kwargs": {"eps": 1e-6}}
TEXT = {"ls_init_value": 1e-4, "mlp_ratio": 3, "norm_kwargs": {"eps": 1e-4}, "pool_type": "last"}


def test_flags_of_no_model_equal_open_clip():
    compare(shrunken("ViT-B-16", VISION, TEXT), batch=6)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_flag_equals_open_clip(name: str):
    model, vision, text = ARCHITECTURES[name]
    compare(shrunken(model, vision, text), batch=6)


def test_cropping_tokens_changes_no_feature():
    checkpoint = dummy_checkpoint()
    tokens = checkpoint.tokenizer(["a photo of a cat.", "a bird", "the red dog " * 3])
    longest = text_lengths(tokens, checkpoint.config.text).max()
    assert longest < tokens.shape[1]
    encode = extractor(checkpoint.config)[1]
    whole, cropped, short = (
        encode(checkpoint.params, tokens[:, :n]) for n in (tokens.shape[1], longest, longest - 1)
    )
    assert np.abs(whole - cropped).max() <= 1e-6
    # One token fewer cuts off an end token and changes its feature.
    assert np.abs(whole - short).max() > 1e-3


@pytest.mark.usefixtures("all_devices")
@pytest.mark.parametrize("fsdp", [None, pytest.param(1, marks=pytest.mark.full), 4])
def test_texts_of_several_lengths_are_encoded_together(fsdp):
    """On one device without a mesh, and on eight."""
    checkpoint = dummy_checkpoint()
    tokens = checkpoint.tokenizer(["a photo of a cat.", "a bird", "the red dog", "two dogs"] * 4)
    longest = int(text_lengths(tokens, checkpoint.config.text).max())
    mesh = None if fsdp is None else sharding.make_mesh(fsdp)
    definition = define(checkpoint.config, mesh=mesh)
    groups = [tokens[:8], tokens[8:, :longest]]
    if mesh is not None:
        groups = [jax.device_put(group, sharding.over_batch(mesh)) for group in groups]
    found = jax.jit(lambda params, groups: bind(definition, params).encode_texts(groups))(
        checkpoint.params, groups
    )
    alone = extractor(checkpoint.config)[1]
    for features, group in zip(found, groups, strict=True):
        expected = alone(checkpoint.params, np.asarray(group))
        np.testing.assert_allclose(features, expected, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() <= 1e-6  # the same texts, one group cropped


@pytest.mark.full
@pytest.mark.usefixtures("all_devices")
def test_towers_move_no_sequences_between_devices():
    checkpoint, mesh = dummy_checkpoint(), sharding.make_mesh()
    definition = define(checkpoint.config, mesh=mesh)

    def value(params, images, groups):
        model = bind(definition, params)
        return sum(x.sum() for x in (model.encode_image(images), *model.encode_texts(groups)))

    images = jnp.zeros((5 * mesh.size, *checkpoint.config.vision.image_size, 3))
    groups = [jnp.ones((3 * mesh.size, 9), jnp.int32), jnp.ones((mesh.size, 16), jnp.int32)]
    images, groups = jax.device_put((images, groups), sharding.over_batch(mesh))
    params = jax.device_put(checkpoint.params, sharding.replicated(mesh))
    program = jax.jit(jax.grad(value)).lower(params, images, groups).compile().as_text()
    assert "all-reduce" in program  # the gradient of the parameters
    for operation in ("all-gather", "all-to-all", "collective-permute"):
        assert operation not in program


def test_rematerialization_changes_no_gradient():
    checkpoint = dummy_checkpoint()
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 16, 3)), jnp.float32)

    barriers = []

    def gradient(remat: bool) -> dict[str, jax.Array]:
        definition = define(checkpoint.config, remat=remat)
        lowered = jax.jit(
            jax.grad(lambda p: jnp.sum(bind(definition, p).encode_image(images)[:, :3] ** 3))
        ).lower(checkpoint.params)
        barriers.append(lowered.as_text().count("optimization_barrier"))
        return lowered.compile()(checkpoint.params)

    plain, again = gradient(False), gradient(True)
    assert barriers[1] > barriers[0]  # the recomputed operations are separate
    for name, value in plain.items():
        np.testing.assert_allclose(again[name], value, atol=1e-6, err_msg=name)


def test_bfloat16_is_near_float32_and_keeps_float32_parameters():
    checkpoint = dummy_checkpoint()
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    exact, features = (
        extractor(checkpoint.config, dtype)[0](checkpoint.params, images)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert features.dtype == jnp.float32
    assert 0 < np.abs(features - exact).max() < 0.03


def test_initial_parameters_are_those_that_a_checkpoint_expects():
    config = dummy_checkpoint().config
    params = initial_params(config, seed=3)
    assert {name: value.shape for name, value in params.items()} == expected_shapes(config)
    assert all(value.dtype == jnp.float32 for value in params.values())


def test_bfloat16_keeps_the_gradient_of_frequent_tokens():
    checkpoint = dummy_checkpoint(layers=1)
    tokens = jnp.repeat(checkpoint.tokenizer(["a photo of the cat"])[:, :8], 1024, axis=0)

    def gradient(dtype: type) -> np.ndarray:
        definition = define(checkpoint.config, dtype=dtype)
        loss = lambda p: bind(definition, p).encode_text(tokens)[:, :4].sum()  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(checkpoint.params)["text/token_embedding"])

    exact, rough = gradient(jnp.float32), gradient(jnp.bfloat16)
    assert np.linalg.norm(rough - exact) <= 0.05 * np.linalg.norm(exact)
