"""A CLIP of a few layers with a tokenizer of a few words, for quick tests."""

from __future__ import annotations

import functools

import jax
import numpy as np

from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.word_level import word_tokenizer
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.clip import initial_params
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig

WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "cat",
    "dog",
    "bird",
    "red",
    "green",
]


@functools.cache
def _initial_params(config: CLIPConfig, seed: int) -> dict[str, np.ndarray]:
    """Compile one program, instead of one per operation and shape."""
    return jax.device_get(jax.jit(lambda: initial_params(config, seed))())


def dummy_checkpoint(
    seed: int = 0, image_size: int = 16, context_length: int = 24, layers: int = 2
) -> Checkpoint:
    """Return a randomly initialized CLIP."""
    tokenizer = word_tokenizer(WORDS, context_length)
    config = CLIPConfig(
        embed_dim=16,
        vision=VisionConfig(32, layers, 2, 8, (image_size, image_size)),
        text=TextConfig(24, layers, 2, context_length, tokenizer.vocab_size),
    )
    params = {name: value.copy() for name, value in _initial_params(config, seed).items()}
    preprocess = Preprocess(
        size=(image_size, image_size),
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.3, 0.2),
        interpolation="bicubic",
        resize_mode="shortest",
        fill_color=0,
    )
    return Checkpoint(config, params, tokenizer, preprocess, {"model": "dummy"})
