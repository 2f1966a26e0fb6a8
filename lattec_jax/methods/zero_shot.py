"""CLIP zero-shot: cosine with the text features of the class template, nothing trained."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Float

from lattec_jax.methods.base import EncodeClasses


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """The pre-trained model as it is. It has no loss; the train loop takes no step."""

    name = "zero_shot"
    trains = False
    requires = frozenset()
    description_kinds = ()

    def init(self, class_features: Float[Array, "C D"]) -> tuple[()]:
        """No state."""
        return ()

    def classifier(self, state: Any, encode_classes: EncodeClasses) -> Float[Array, "C D"]:
        """The text features of the templates."""
        return encode_classes()
