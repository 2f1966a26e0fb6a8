"""Class-descriptions and their ensembles, against open_clip's zero-shot classifier."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from configs.common import get_config
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.prompts import class_prompts
from lattec_jax.inference.feature_extractor import FeatureExtractor
from lattec_jax.models.clip import define
from lattec_jax.runtime import sharding
from lattec_jax.runtime.config import validate
from lattec_jax.runtime.errors import ConfigError
from tests.dummy import dummy_checkpoint
from tests.openclip_models import flat_params, random_open_clip, shrunken

TEMPLATES = ("a photo of a {}.", "a {} in the wild", "art of the {}, seen from above on a {} day")


def extractor(config, preprocess: Preprocess | None = None) -> FeatureExtractor:
    preprocess = preprocess or dummy_checkpoint().preprocess
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    return FeatureExtractor(define(config), preprocess, mesh, 3)  # so that one shape serves all


def test_an_ensemble_is_open_clip_s_zero_shot_classifier():
    """With several names as well, each of which is one more description to average."""
    torch = pytest.importorskip("torch")
    config = shrunken("ViT-B-32", {"layers": 1}, {"layers": 1})
    model = random_open_clip(config)
    ours, params = flat_params(model, config)
    from open_clip import SimpleTokenizer, build_zero_shot_classifier

    tokenizer = SimpleTokenizer()
    tokenize = lambda texts: tokenizer(texts).numpy()  # noqa: E731
    extract = extractor(ours)

    names = ("car", "sea lake", "dog")
    prompts = class_prompts([(name,) for name in names], TEMPLATES, tokenize, ours.text)
    found = extract.encode_classes(params, prompts)
    called = [lambda name, t=t: t.replace("{}", name) for t in TEMPLATES]
    with torch.no_grad():
        expected = build_zero_shot_classifier(model, tokenizer, names, called, device="cpu")
    np.testing.assert_allclose(found, expected.numpy().T, atol=1e-6)
    assert np.abs(found - extract.encode_texts(params, prompts.first)).max() > 1e-3

    # A class of two names is an ensemble over both.
    synonyms = [("car", "automobile"), ("sea lake",), ("dog",)]
    found = extract.encode_classes(params, class_prompts(synonyms, TEMPLATES, tokenize, ours.text))
    both = [lambda _, t=t, n=n: t.replace("{}", n) for t in TEMPLATES for n in synonyms[0]]
    with torch.no_grad():
        car = build_zero_shot_classifier(model, tokenizer, ["car"], both, device="cpu")
    np.testing.assert_allclose(found[0], car.numpy()[:, 0], atol=1e-6)
    np.testing.assert_allclose(found[1:], expected.numpy().T[1:], atol=1e-6)


def test_one_template_and_one_name_are_the_plain_descriptions():
    checkpoint = dummy_checkpoint()
    names = [("cat",), ("dog",), ("red bird",)]
    prompts = class_prompts(
        names, ("a photo of a {}",), checkpoint.tokenizer, checkpoint.config.text
    )
    np.testing.assert_array_equal(prompts.tokens, prompts.first)
    extract = extractor(checkpoint.config)
    np.testing.assert_array_equal(
        extract.encode_classes(checkpoint.params, prompts),
        extract.encode_texts(checkpoint.params, prompts.first),
    )


def test_the_first_template_with_the_first_name_is_what_a_step_encodes():
    checkpoint = dummy_checkpoint()
    prompts = class_prompts(
        [("cat", "dog"), ("bird",)],
        ("a {}", "the {} of the red green one two three four five six seven eight nine"),
        checkpoint.tokenizer,
        checkpoint.config.text,
    )
    assert prompts.classes.tolist() == [0, 0, 0, 0, 1, 1]
    assert prompts.first.shape == (2, 16) and prompts.tokens.shape == (6, 24)
    np.testing.assert_array_equal(prompts.first, checkpoint.tokenizer(["a cat", "a bird"])[:, :16])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((), r"found \(\)"),
        (("a photo of a {}.", "a photo"), "for the class name, .*found .*'a photo'"),
        ((3,), r"found \(3,\)"),
    ],
)
def test_mistakes_in_templates(value, message):
    config = get_config()
    config.templates = value
    with pytest.raises(ConfigError, match=rf"config\.templates: .*{message}"):
        validate(config)
    assert validate(get_config()).templates == ("a photo of a {}.",)
