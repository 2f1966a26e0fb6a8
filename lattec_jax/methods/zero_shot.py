"""CLIP zero-shot: cosine with the text features of the class template, nothing trained."""

from __future__ import annotations

import dataclasses

from lattec_jax.methods.base import Method


@dataclasses.dataclass(frozen=True)
class ZeroShot(Method):
    """The pre-trained model as it is. It has no loss; the train loop takes no step."""

    name = "zero_shot"
    trains = False


METHODS = {"zero_shot": lambda config: ZeroShot()}
