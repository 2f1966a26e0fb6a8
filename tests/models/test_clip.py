"""Our towers against open_clip's, on the same randomised weights."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattec_jax import sharding
from lattec_jax.models import clip
from lattec_jax.models.clip import Packing, bind, define, has_flash_attention, initial_params
from lattec_jax.models.config import CLIPConfig, text_lengths
from tests.dummy import dummy_checkpoint
from tests.openclip_models import (
    ARCHITECTURES,
    flat_params,
    model_cfg,
    random_open_clip,
    shrunken,
)


def random_tokens(rng: np.random.Generator, config: CLIPConfig, count: int) -> np.ndarray:
    """Token matrices as a tokenizer makes them: start, words, end, padding."""
    text = config.text
    end = text.eos_id if text.pool == "eos" else text.vocab_size - 1
    tokens = np.zeros((count, text.context_length), np.int32)
    for row in tokens:
        length = rng.integers(2, text.context_length + 1)
        row[:length] = rng.integers(3, text.vocab_size - 2, length)
        row[length - 1] = end
    return tokens


def compare(config: dict, batch: int) -> None:
    """Unit features of both towers within 1e-5."""
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
    definition = define(ours)
    encode_image = jax.jit(lambda p, x: bind(definition, p).encode_image(x))
    encode_text = jax.jit(lambda p, x: bind(definition, p).encode_text(x))
    assert np.abs(encode_image(params, images) - image_features).max() <= 1e-5
    assert np.abs(encode_text(params, tokens) - text_features).max() <= 1e-5
    # The rows differ, so that equality says something.
    assert np.abs(image_features[0] - image_features[1]).max() > 1e-3
    assert np.abs(text_features[0] - text_features[1]).max() > 1e-3


def test_full_vit_b_32_equals_open_clip():
    compare(model_cfg("ViT-B-32"), batch=4)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_flag_equals_open_clip(name: str):
    model, vision, text = ARCHITECTURES[name]
    compare(shrunken(model, vision, text), batch=6)


def test_cropping_tokens_changes_nothing():
    checkpoint = dummy_checkpoint()
    definition = define(checkpoint.config)
    tokens = checkpoint.tokenizer(["a photo of a cat.", "a bird", "the red dog " * 3])
    longest = text_lengths(tokens, checkpoint.config.text).max()
    assert longest < tokens.shape[1]
    model = bind(definition, checkpoint.params)
    whole, cropped = model.encode_text(tokens), model.encode_text(tokens[:, :longest])
    assert np.abs(whole - cropped).max() <= 1e-6
    # One token fewer cuts off an end token, and shows.
    assert np.abs(whole - model.encode_text(tokens[:, : longest - 1])).max() > 1e-3


def test_texts_of_several_lengths_go_through_together():
    checkpoint = dummy_checkpoint()
    tokens = checkpoint.tokenizer(["a photo of a cat.", "a bird", "the red dog", "two dogs"] * 4)
    longest = int(text_lengths(tokens, checkpoint.config.text).max())
    alone = bind(define(checkpoint.config), checkpoint.params)
    for mesh in (None, sharding.make_mesh(), sharding.make_mesh(4)):
        definition = define(checkpoint.config, mesh=mesh)
        groups = [tokens[:8], tokens[8:, :longest]]
        if mesh is not None:
            groups = [jax.device_put(group, sharding.over_batch(mesh)) for group in groups]
        encode = jax.jit(lambda params, groups, d=definition: bind(d, params).encode_texts(groups))
        found = encode(checkpoint.params, groups)
        for features, group in zip(found, groups, strict=True):
            np.testing.assert_allclose(features, alone.encode_text(np.asarray(group)), atol=1e-6)
        assert np.abs(found[0] - found[1]).max() <= 1e-6  # the same texts, one group cropped


def test_packing_lays_a_devices_tokens_together_and_takes_them_apart():
    packing = Packing(((4, 3), (2, 5)), 2)
    sequence = np.repeat(np.arange(6), [3, 3, 3, 3, 5, 5])  # of each token
    groups = [np.arange(4).repeat(3).reshape(4, 3, 1), np.arange(4, 6).repeat(5).reshape(2, 5, 1)]
    assert np.array_equal(np.concatenate([g.reshape(-1) for g in groups]), sequence)
    tokens = packing.join(groups)
    assert tokens[:, 0].tolist() == [0] * 3 + [1] * 3 + [4] * 5 + [2] * 3 + [3] * 3 + [5] * 5
    for found, group in zip(packing.separate(tokens), groups, strict=True):
        assert np.array_equal(found, group)


def device(platform: str, kind: str, capability: str) -> SimpleNamespace:
    return SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)


@pytest.mark.parametrize(
    ("found", "width", "expected"),
    [
        (device("gpu", "NVIDIA H200", "9.0"), 64, True),
        (device("gpu", "NVIDIA H200", "9.0"), 60, False),  # no multiple of 8
        (device("gpu", "NVIDIA H200", "9.0"), 160, False),
        (device("gpu", "Tesla T4 (NVIDIA)", "7.5"), 64, False),
        (device("gpu", "AMD Instinct MI300X", "gfx942"), 64, False),
        (device("tpu", "TPU v5", ""), 64, False),
    ],
)
def test_flash_attention_where_cudnn_has_it(found, width, expected):
    mesh = SimpleNamespace(devices=np.array([found], dtype=object))
    assert has_flash_attention(mesh, width) is expected
    assert not has_flash_attention(None, width)


@pytest.mark.parametrize("causal", [True, False])
def test_odd_lengths_are_filled_up_for_flash_attention(monkeypatch, causal):
    """With XLA's attention in the place of cuDNN's, which this machine lacks."""
    attend, lengths = jax.nn.dot_product_attention, []

    def stand_in(query, *rest, implementation, **options):
        assert implementation == "cudnn"
        lengths.append(query.shape[1])
        return attend(query, *rest, **options)

    rng = np.random.default_rng(0)
    for length in (7, 8):
        inputs = rng.normal(size=(3, 2, length, 4, 8)).astype(np.float32)
        weights = rng.normal(size=(2, length, 4, 8)).astype(np.float32)

        def value(inputs, mix, weights=weights):
            return (mix(*inputs, is_causal=causal) * weights).sum()

        expected = jax.value_and_grad(value)(inputs, attend)
        with monkeypatch.context() as patch:
            patch.setattr(jax.nn, "dot_product_attention", stand_in)
            found = jax.value_and_grad(value)(inputs, clip.flash_attention)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 2e-6), found, expected)
    assert set(lengths) == {8}


@pytest.mark.parametrize("causal", [True, False])
def test_a_block_reads_out_what_it_gives_as_a_whole(causal):
    """And with the same gradient, for sequences of two lengths on two devices' order."""
    config = dummy_checkpoint().config.text
    block = clip.Block(config, clip.quick_gelu, causal, jnp.float32, None, clip.nnx.Rngs(0))
    packing, rng = Packing(((4, 5), (2, 3)), 2), np.random.default_rng(0)
    x = rng.normal(size=(26, config.width)).astype(np.float32)
    places = [jnp.array([0, 4, 2, 3]), jnp.array([2, 1])]
    weights = rng.normal(size=(6, config.width)).astype(np.float32)
    graph, params = clip.nnx.split(block)

    def keep(x):
        return x

    def whole(params, x):
        out = packing.choose(clip.nnx.merge(graph, params)(x, packing, keep), places)
        return (out * weights).sum(), out

    def short(params, x):
        out = clip.nnx.merge(graph, params).read_out(x, packing, keep, places)
        return (out * weights).sum(), out

    found, expected = (
        jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(params, x) for f in (short, whole)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max())),
        found,
        expected,
    )


def test_towers_bring_no_sequences_of_several_devices_together():
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norm_and_activation_against_float64(dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    # Values far from zero, for which E[x²] − E[x]² would lose digits; one token is constant.
    x = (rng.normal(size=(6, 5, 32)) + rng.normal(size=(6, 5, 1)) * 20).astype(np.float32)
    x[0, 0] = 3.0
    x, weights = (jnp.asarray(a, dtype) for a in (x, rng.normal(size=x.shape)))
    scale, bias = rng.normal(size=(2, 32)).astype(np.float32)

    def reference(function, *inputs):
        exact = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in inputs]
        out = function(*exact)
        (out * torch.tensor(np.asarray(weights, np.float64))).sum().backward()
        return [out.detach().numpy(), *(a.grad.numpy() for a in exact)]

    def ours(function, *inputs):
        out, pull = jax.vjp(function, *inputs)
        assert out.dtype == dtype
        return [np.asarray(a, np.float64) for a in (out, *pull(weights))]

    functional = torch.nn.functional
    pairs = (
        (
            ours(lambda *a: clip.layer_norm(*a, 1e-5), x, scale, bias),
            reference(
                lambda a, *rest: functional.layer_norm(a, (32,), *rest, 1e-5), x, scale, bias
            ),
        ),
        (ours(clip.exact_gelu, x), reference(functional.gelu, x)),
    )
    limit = 1e-5 if dtype == jnp.float32 else 4e-3  # half a step of bfloat16, 2⁻⁸
    for found, expected in pairs:
        for a, b in zip(found, expected, strict=True):
            assert np.linalg.norm(a - b) <= limit * np.linalg.norm(b)


def test_rematerialisation_changes_no_gradient():
    checkpoint = dummy_checkpoint()
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)

    def gradient(remat: bool) -> dict[str, jax.Array]:
        definition = define(checkpoint.config, remat=remat)
        return jax.jit(
            jax.grad(lambda p: jnp.sum(bind(definition, p).encode_image(images)[:, :3] ** 3))
        )(checkpoint.params)

    plain, again = gradient(False), gradient(True)
    for name, value in plain.items():
        np.testing.assert_allclose(again[name], value, atol=1e-6, err_msg=name)


def test_bfloat16_is_near_float32_and_keeps_float32_parameters():
    checkpoint = dummy_checkpoint()
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    exact = bind(define(checkpoint.config), checkpoint.params).encode_image(images)
    rough = bind(define(checkpoint.config, dtype=jnp.bfloat16), checkpoint.params)
    features = rough.encode_image(images)
    assert features.dtype == jnp.float32
    assert 0 < np.abs(features - exact).max() < 0.03


def test_initial_parameters_are_those_that_a_checkpoint_expects():
    from lattec_jax.models.checkpoint import expected_shapes

    config = dummy_checkpoint().config
    params = initial_params(config, seed=3)
    assert {name: value.shape for name, value in params.items()} == expected_shapes(config)
    assert all(value.dtype == jnp.float32 for value in params.values())


def test_bfloat16_keeps_the_gradient_of_tokens_that_every_text_has():
    checkpoint = dummy_checkpoint()
    tokens = np.repeat(checkpoint.tokenizer(["a photo of the cat"])[:, :8], 1024, axis=0)

    def gradient(dtype: type) -> np.ndarray:
        definition = define(checkpoint.config, dtype=dtype)
        loss = lambda p: bind(definition, p).encode_text(tokens)[:, :4].sum()  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(checkpoint.params)["text/token_embedding"])

    exact, rough = gradient(jnp.float32), gradient(jnp.bfloat16)
    assert np.linalg.norm(rough - exact) <= 0.05 * np.linalg.norm(exact)
