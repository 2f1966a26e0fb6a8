"""Class-descriptions: every template with every name of every class; and the describing prompts.

The zero-shot classifier is an ensemble, as open_clip's `build_zero_shot_classifier` makes it: the
features of all descriptions of a class, each normalized, are averaged and normalized again. It
gives the pseudo-labels, the initial prototypes and FLYP's final classifier. Inside of a training
step a class has one description, that of the first template and the first name: the text tower
encodes it anew at each step, and an ensemble of 80 templates would cost 80 times as much.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lattec_jax.data.text.bucketing import TextTower, bucket_length, text_lengths
from lattec_jax.data.text.tokenizer import Tokenizer

CLASS = "{class}"  # in prompts for descriptions


@dataclasses.dataclass(frozen=True)
class ClassPrompts:
    """The tokens of all P class-descriptions of C classes."""

    tokens: Int[np.ndarray, "P L"]
    classes: Int[np.ndarray, " P"]  # which class each describes
    first: Int[np.ndarray, "C M"]  # only the first template with the first name


def description_prompt(template: str, class_name: str) -> str:
    """The prompt for a description; `{class}` stands for the image's pseudo-label."""
    return template.replace(CLASS, class_name)


def class_prompts(
    names: Sequence[Sequence[str]],
    templates: Sequence[str],
    tokenizer: Tokenizer,
    config: TextTower,
) -> ClassPrompts:
    """Tokens of the class-descriptions, cropped to the bucket of the longest.

    Args:
        names: of each class, the display name first.
        templates: with {} for the name.
        tokenizer: of the model.
        config: of its text tower.
    """
    pairs = [(c, t, n) for c, own in enumerate(names) for t in templates for n in own]
    tokens = tokenizer([template.replace("{}", name) for _, template, name in pairs])
    classes = np.array([c for c, _, _ in pairs], np.int32)
    first = tokens[np.searchsorted(classes, np.arange(len(names)))]
    return ClassPrompts(_crop(tokens, config), classes, _crop(first, config))


def _crop(tokens: Int[np.ndarray, "P L"], config: TextTower) -> Int[np.ndarray, "P M"]:
    longest = int(text_lengths(tokens, config).max())
    return tokens[:, : bucket_length(longest, config.context_length)]
