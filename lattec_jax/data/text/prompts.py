"""Prompts with class names: class-descriptions, and prompts for a vision-language model.

A class-description is a template with a name of the class. The zero-shot classifier is an ensemble
over all templates and names, as in open_clip's `build_zero_shot_classifier`: the normalized
features of a class are averaged and normalized again. It gives the pseudo-labels, the initial
prototypes and FLYP's final classifier. A training step uses the first template and the first name
only: the text tower encodes them at every step, and an ensemble of 80 templates would cost 80 times
as much.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lattec_jax.data.text.bucketing import TextTowerConfig, bucket_length, text_lengths
from lattec_jax.data.text.tokenizer import Tokenizer

CLASS = "{class}"  # placeholder in prompts for a vision-language model


@dataclasses.dataclass(frozen=True)
class ClassPrompts:
    """Tokens of the P class-descriptions of C classes."""

    tokens: Int[np.ndarray, "P L"]
    classes: Int[np.ndarray, " P"]  # the class of each description
    first: Int[np.ndarray, "C M"]  # the first template with the first name


def description_prompt(template: str, class_name: str) -> str:
    """Return the prompt for a description of an image whose pseudo-label is `class_name`."""
    return template.replace(CLASS, class_name)


def class_prompts(
    names: Sequence[Sequence[str]],
    templates: Sequence[str],
    tokenizer: Tokenizer,
    config: TextTowerConfig,
) -> ClassPrompts:
    """Return the class-descriptions, cropped to the length bucket of the longest.

    `names` are those of each class, the display name first; templates have {} for the name.
    """
    prompts = [(c, t, n) for c, synonyms in enumerate(names) for t in templates for n in synonyms]
    tokens = tokenizer([template.replace("{}", name) for _, template, name in prompts])
    classes = np.array([c for c, _, _ in prompts], np.int32)
    first = tokens[np.searchsorted(classes, np.arange(len(names)))]  # `classes` is sorted
    return ClassPrompts(_crop(tokens, config), classes, _crop(first, config))


def _crop(tokens: Int[np.ndarray, "P L"], config: TextTowerConfig) -> Int[np.ndarray, "P M"]:
    longest = int(text_lengths(tokens, config).max())
    return tokens[:, : bucket_length(longest, config.context_length)]
