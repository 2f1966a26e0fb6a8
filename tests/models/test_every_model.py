"""Every plain ViT CLIP of open_clip, shrunken and some in full size, against open_clip."""

from __future__ import annotations

import importlib.util
import zlib

import numpy as np
import pytest

from convert.flax_to_openclip import open_clip_model_cfg
from convert.list_models import FULL_SIZE, parameters, plain_models
from convert.names import to_open_clip
from lattec_jax.data.text.bucketing import text_lengths
from lattec_jax.models.config import CLIPConfig
from tests.models.test_clip import compare, extractor, random_tokens
from tests.openclip_models import flat_params, miniature, model_cfg, random_open_clip, state_dict

if importlib.util.find_spec("open_clip") is None:
    pytest.skip("needs open_clip's model configurations", allow_module_level=True)

MODELS = sorted(plain_models())

# A few models that have every setting of the architecture among them; the default tier compares
# these with open_clip, and the tier `full` all 45.
COVERING = (
    "ViT-B-32",
    "ViT-H-14-worldwide",
    "ViT-L-14-worldwide-quickgelu",
    "ViT-M-16-alt",
    "ViT-bigG-14-CLIPA-336",
)
EVERY = [
    name if name in COVERING else pytest.param(name, marks=pytest.mark.full) for name in MODELS
]


def settings(model: str) -> set[tuple[str, str]]:
    """Key and value of all that a shrunken copy has of a model, but for its text cleaning.

    Of widths and their ratios only the key.
    """
    config = miniature(model)
    parts = {"": config, "vision.": config["vision_cfg"], "text.": config["text_cfg"]}
    widths = ("width", "head_width", "mlp_ratio")
    return {
        (section + key, "" if key in widths else str(value))
        for section, part in parts.items()
        for key, value in part.items()
        if not isinstance(value, dict) and key != "hf_tokenizer_name"
    }


def test_there_are_45_models():
    assert len(MODELS) == 45
    assert set(FULL_SIZE) < set(MODELS)


def test_the_default_tier_covers_every_setting():
    """The models of the default tier have each value of each key, and lack each optional key."""
    everywhere, covered = ([settings(model) for model in names] for names in (MODELS, COVERING))
    assert set().union(*covered) == set().union(*everywhere)
    common = [
        set.intersection(*({key for key, _ in pairs} for pairs in found))
        for found in (everywhere, covered)
    ]
    assert common[0] == common[1]


@pytest.mark.parametrize("model", MODELS)
def test_miniature_keeps_every_key(model):
    whole, small = model_cfg(model), miniature(model)
    assert whole.keys() == small.keys()
    for section in ("vision_cfg", "text_cfg"):
        assert whole[section].keys() == small[section].keys()
    sizes = {"width", "layers", "heads", "head_width", "image_size", "patch_size", "vocab_size"}
    for section in ("vision_cfg", "text_cfg"):
        for key in whole[section].keys() - sizes:
            assert whole[section][key] == small[section][key]
    assert whole.get("quick_gelu") == small.get("quick_gelu")


@pytest.mark.parametrize("model", EVERY)
def test_features_and_round_trip(model):
    torch = pytest.importorskip("torch")
    config = miniature(model)
    theirs = random_open_clip(config, seed=zlib.crc32(model.encode()))
    ours, params = flat_params(theirs, config)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, *ours.vision.image_size, 3)).astype(np.float32)
    tokens = random_tokens(rng, ours, 5)
    with torch.no_grad():
        nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        image_features = theirs.encode_image(nchw, normalize=True).numpy()
        text_features = theirs.encode_text(torch.from_numpy(tokens).long(), normalize=True).numpy()
    encode_image, encode_text = extractor(ours)
    assert np.abs(encode_image(params, images) - image_features).max() <= 4e-6
    assert np.abs(encode_text(params, tokens) - text_features).max() <= 4e-6
    assert np.abs(image_features[0] - image_features[1]).max() > 1e-3
    assert np.abs(text_features[0] - text_features[1]).max() > 1e-3
    # There and back, bit for bit, weights and configuration.
    expected, back = state_dict(theirs), to_open_clip(params, ours)
    assert back.keys() == expected.keys()
    assert all(back[name].tobytes() == array.tobytes() for name, array in expected.items())
    assert CLIPConfig.from_open_clip(open_clip_model_cfg(ours)) == ours
    assert parameters(ours)[2] == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("model", ["ViT-H-14-worldwide", "ViT-bigG-14-CLIPA-336"])
def test_cropped_texts(model):
    """Cropping to `text_lengths` changes no feature, and crops wherever the tower allows it."""
    config = miniature(model)
    ours, params = flat_params(random_open_clip(config), config)
    tokens = random_tokens(np.random.default_rng(0), ours, 1)
    longest = int(text_lengths(tokens, ours.text).max())
    assert (longest < tokens.shape[1]) == ours.text.causal
    encode_text = extractor(ours)[1]
    whole, cropped = encode_text(params, tokens), encode_text(params, tokens[:, :longest])
    assert np.abs(whole - cropped).max() <= 1e-6


@pytest.mark.soak
@pytest.mark.parametrize("model", [name for name in FULL_SIZE if name != "ViT-B-32"])
def test_full_size(model):
    compare(model_cfg(model), batch=2)
