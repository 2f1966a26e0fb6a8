from __future__ import annotations

import numpy as np
import pytest

from convert.flax_to_openclip import open_clip_model_cfg
from convert.names import open_clip_name, to_flax, to_open_clip
from lattec_jax.models.checkpoint import expected_shapes
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.runtime.errors import WeightsError
from tests.openclip_models import (
    ARCHITECTURES,
    flat_params,
    random_open_clip,
    shrunken,
    state_dict,
)

TINY = CLIPConfig(
    embed_dim=6,
    vision=VisionConfig(width=8, layers=2, heads=2, patch_size=4, image_size=(8, 8)),
    text=TextConfig(width=4, layers=1, heads=1, context_length=5, vocab_size=7),
)


def tiny_state_dict() -> dict[str, np.ndarray]:
    """OpenCLIP's tensors of TINY, without torch."""
    rng = np.random.default_rng(0)
    shapes = expected_shapes(TINY).items()
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes}
    params["logit_scale"] = np.array(2.5, np.float32)
    return to_open_clip(params, TINY)


def assert_equal_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape, name
        assert found[name].dtype == array.dtype, name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_round_trip_of_every_flag(name):
    config = shrunken(*ARCHITECTURES[name])
    model = random_open_clip(config)
    ours, params = flat_params(model, config)
    assert {n: a.shape for n, a in params.items()} == expected_shapes(ours)
    assert all(array.flags.c_contiguous for array in params.values())
    assert_equal_bits(to_open_clip(params, ours), state_dict(model))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_configuration_is_inverted(name):
    pytest.importorskip("torch")
    ours = CLIPConfig.from_open_clip(shrunken(*ARCHITECTURES[name]))
    exported = open_clip_model_cfg(ours)
    assert CLIPConfig.from_open_clip(exported) == ours
    # And open_clip accepts it: the same model is built from it.
    exported_state = state_dict(random_open_clip(exported))
    assert_equal_bits(exported_state, state_dict(random_open_clip(shrunken(*ARCHITECTURES[name]))))


def test_text_tower_with_a_prefix():
    config = {**shrunken("ViT-B-32"), "custom_text": True}
    model = random_open_clip(config)
    ours, params = flat_params(model, config)
    assert_equal_bits(to_open_clip(params, ours, custom_text=True), state_dict(model))


def test_layouts():
    """Kernels are [in, out]; a patch is flattened by height, width and channel."""
    tensors = tiny_state_dict()
    params = to_flax(tensors, TINY, "the file")
    conv = tensors["visual.conv1.weight"]
    assert conv.shape == (8, 3, 4, 4)
    row, column, channel, out = 1, 2, 0, 5
    flat_index = (row * 4 + column) * 3 + channel
    kernel = params["visual/patch_embedding/kernel"]
    assert kernel[flat_index, out] == conv[out, channel, row, column]
    qkv = tensors["visual.transformer.resblocks.1.attn.in_proj_weight"]
    np.testing.assert_array_equal(params["visual/blocks/1/attn/qkv/kernel"], qkv.T)
    np.testing.assert_array_equal(params["text/projection"], tensors["text_projection"])
    assert params["logit_scale"].shape == ()


def test_names_are_unique_and_open_clips():
    names = [open_clip_name(name) for name in expected_shapes(TINY)]
    assert len(set(names)) == len(names)
    assert "transformer.resblocks.0.attn.in_proj_weight" in names
    assert "visual.transformer.resblocks.1.mlp.c_proj.bias" in names
    assert {"ln_final.weight", "visual.ln_pre.bias", "visual.proj", "logit_scale"} <= set(names)


def test_all_mismatched_tensors_are_listed():
    tensors = tiny_state_dict()
    del tensors["visual.proj"], tensors["ln_final.bias"]
    tensors["visual.conv1.weight"] = np.zeros((8, 3, 2, 2), np.float32)
    tensors["positional_embedding"] = np.zeros((6, 4), np.float32)
    tensors["logit_bias"] = np.zeros((), np.float32)
    tensors["visual.head.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(WeightsError) as caught:
        to_flax(tensors, TINY, "weights.safetensors")
    message = str(caught.value)
    for part in (
        "weights.safetensors: 6 tensors",
        "unknown: logit_bias ()",
        "unknown: visual.head.weight (2, 2)",
        "missing: visual.proj (8, 6)",
        "missing: ln_final.bias (4,)",
        "wrong shape: visual.conv1.weight expected (8, 3, 4, 4), found (8, 3, 2, 2)",
        "wrong shape: positional_embedding expected (5, 4), found (6, 4)",
    ):
        assert part in message


def test_other_tensors_of_checkpoints():
    tensors = tiny_state_dict()
    expected = to_flax(tensors, TINY, "the file")
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    tensors = {f"module.{name}": array for name, array in tensors.items()}
    tensors["input_resolution"] = np.array(8)
    assert_equal_bits(to_flax(tensors, TINY, "the file"), expected)


def test_integers_are_no_weights():
    tensors = tiny_state_dict()
    tensors["ln_final.bias"] = np.zeros(4, np.int8)
    with pytest.raises(WeightsError, match=r"found ln_final\.bias int8.*not quantized"):
        to_flax(tensors, TINY, "the file")
