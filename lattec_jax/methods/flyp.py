"""FLYP (arXiv 2212.00638): fine-tune both towers as CLIP was pre-trained, on the class template.

Two baselines of the paper: with pseudo-labels, and with true labels (the oracle). Pseudo-labels are
assigned by the current model anew at every step (the preset "paper"), or they are the fixed ones of
the frozen model, on which the authors' repository trains this baseline ("released_code").

Training, the current model's pseudo-labels included, takes the first template only; inference takes
the adapted text features of the whole ensemble (`lattec_jax.data.text.prompts`). There are no
prototypes and no averaging of weights.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from lattec_jax.methods.base import Features, Method, Targets, required
from lattec_jax.methods.contrastive import info_nce


@dataclasses.dataclass(frozen=True)
class FLYP(Method):
    """FLYP by pseudo-labels, or by true labels where `oracle` is set."""

    oracle: bool = False
    pseudo_labels: str = "current"  # the released code: "zero_shot"
    loss_reduction: str = "sum"

    name: str = dataclasses.field(init=False)
    requires: frozenset[str] = dataclasses.field(init=False)
    predicted_label: int | None = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        name, requires, predicted_label = "flyp", frozenset[str](), None
        if self.oracle:
            name, requires = "flyp_oracle", frozenset({"labels"})
        elif self.pseudo_labels != "zero_shot":
            predicted_label = 0  # the only label
        # The class is frozen.
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "requires", requires)
        object.__setattr__(self, "predicted_label", predicted_label)

    def labels(
        self,
        images: Float[Array, "B D"],
        class_weights: Float[Array, "C D"],
        targets: Targets,
        state: tuple[()],
    ) -> Int[Array, "1 B"]:
        """The true class, or the one that the frozen or the current model predicts."""
        if self.oracle:
            return required(targets.true, "true")[None]
        if self.pseudo_labels == "zero_shot":
            return required(targets.zero_shot, "zero_shot")[None]
        return jnp.argmax(images @ class_weights.T, axis=1)[None]

    def loss(
        self, features: Features, labels: Int[Array, "1 B"], state: tuple[()]
    ) -> tuple[Float[Array, ""], None]:
        """InfoNCE between the image and the template with its label."""
        loss = info_nce(features.images, features.class_texts[0], features.logit_scale)
        return (loss if self.loss_reduction == "sum" else loss / 2), None


def from_config(config: ConfigDict, oracle: bool) -> FLYP:
    return FLYP(oracle, config.flyp.pseudo_labels, config.loss_reduction)


METHODS = {
    "flyp": lambda config: from_config(config, oracle=False),
    "flyp_oracle": lambda config: from_config(config, oracle=True),
}
