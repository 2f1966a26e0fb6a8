"""ReCLIP (arXiv 2308.03793): layer norms trained on labels that two copies of CLIP agree on.

Copy T trains the text tower's norms and copy V the image tower's, so one set of parameters holds
both: T classifies the frozen model's image features by the current texts, V the current image
features by a classifier of its own. Before each epoch every copy propagates the classes over a
graph of the training images (`lattec_jax.methods.label_propagation`), and V's classifier becomes
the centroids of its labels; both are then trained where the two labels of an image agree. The
prediction is the mean of both copies.

As in the authors' repository (michiganleon/ReCLIP_WACV, `reclip.py` and `models.py`), but for this:
it trains on the test images and keeps the epoch that they choose, here training images are used and
the last step counts; it divides V's loss by the batch once more than T's, a bug that is not
reproduced; an incomplete last batch is dropped; and the logit scale is the model's own, fixed,
where the repository has 100. The repository takes CLIP's template ensemble of each data set for V's
classifier and for the seeds and projections of both propagations, and the first template to train
T; here `config.templates` serves in the same way, which is one template unless more are set.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from lattec_jax.methods.base import (
    ClassWeights,
    EncodeClasses,
    EpochMethod,
    Features,
    PrototypeMethod,
    Targets,
    TrainingSetFeatures,
    required,
)
from lattec_jax.methods.label_propagation import centroids, propagate
from lattec_jax.models.clip import normalize


class Copies(NamedTuple):
    """The state: what both copies have beside the parameters."""

    texts: ClassWeights  # class embeddings of the pre-trained model, V's seeds
    class_weights: ClassWeights  # V's
    # Of T and of V for every training image; NumPy's outside of a step.
    labels: Int[Array, "2 N"] | Int[np.ndarray, "2 N"]


def agreeing_cross_entropy(
    logits: Float[Array, "B C"], labels: Int[Array, " B"], agree: Bool[Array, " B"]
) -> Float[Array, ""]:
    """The mean cross-entropy of the images whose labels agree; zero without any."""
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    count = jnp.maximum(agree.sum(), 1).astype(losses.dtype)
    return jnp.sum(losses * agree.astype(losses.dtype)) / count


@dataclasses.dataclass(frozen=True)
class ReCLIP(PrototypeMethod, EpochMethod):
    """The method. Its fields are set from `config.method.reclip`, whose keys `configs/common.py`
    explains."""

    neighbors: int = 20
    diffusion: float = 0.99
    iterations: int = 20
    tolerance: float = 1e-6
    cut_dim: int = 768
    images_per_epoch: int = 5000

    name = "reclip"
    requires = frozenset({"pretrained_features"})
    augments = False
    encodes_all_classes = True
    predicted_label = 1  # V's, which follow the model from epoch to epoch

    def settings(self) -> dict[str, Any]:
        """Return all settings."""
        return {"reclip": dataclasses.asdict(self)}

    def trainable(self, name: str) -> bool:
        """Select the layer norms of both towers."""
        return any(part.startswith("ln_") for part in name.split("/"))

    def max_epochs(self, num_images: int) -> int | None:
        """More epochs for more images, as the repository counts them."""
        return num_images // self.images_per_epoch + 2 if self.images_per_epoch else None

    def init(self, class_features: Float[Array, "C D"], num_images: int) -> Copies:
        """V's classifier starts as the class embeddings; labels come with the first epoch."""
        return Copies(class_features, class_features, jnp.zeros((2, num_images), jnp.int32))

    def begin_epoch(self, state: Copies, features: TrainingSetFeatures) -> Copies:
        """Propagate anew for both copies; V's classifier becomes the centroids of its labels.

        T's seeds are the current texts and its images the frozen features, V's seeds the original
        texts and its images the current features; each is projected by its own seeds.
        """
        texts, current = np.asarray(state.texts), features.images()
        pretrained = required(features.pretrained_features, "pretrained_features")
        settings = (self.cut_dim, self.neighbors, self.diffusion, self.iterations, self.tolerance)
        of_t = propagate(features.classes(), pretrained, *settings)
        of_v = propagate(texts, current, *settings)
        nodes = np.concatenate([texts, current])
        return Copies(
            texts,
            centroids(nodes, of_v, np.asarray(state.class_weights)),
            np.stack([of_t[len(texts) :], of_v[len(texts) :]]),
        )

    def prototypes(self, state: Copies) -> ClassWeights:
        """Return the classifier of copy V."""
        return state.class_weights

    def pretrained_class_weights(self, state: Copies, encode_first: EncodeClasses) -> ClassWeights:
        """Return the classifier of copy T: the current texts of the first template."""
        return encode_first()

    def labels(
        self,
        images: Float[Array, "B D"],
        class_weights: Float[Array, "C D"],
        targets: Targets,
        state: Copies,
    ) -> Int[Array, "2 B"]:
        """Return the propagated labels of both copies, T's first."""
        return jnp.asarray(state.labels)[:, required(targets.indices, "indices")]

    def should_update(self, labels: Int[Array, "2 B"]) -> Bool[Array, ""]:
        """Return whether both copies give any image of the batch the same label."""
        return jnp.any(labels[0] == labels[1])

    def loss(
        self, features: Features, labels: Int[Array, "2 B"], state: Copies
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Return the sum of both copies' cross-entropies; neither has a parameter of the other."""
        agree = labels[0] == labels[1]
        pretrained = required(features.pretrained_features, "pretrained_features")
        classes = required(features.classes, "classes")
        logits_t = features.logit_scale * pretrained @ classes.T
        logits_v = features.logit_scale * features.images @ state.class_weights.T
        of_t = agreeing_cross_entropy(logits_t, labels[0], agree)
        of_v = agreeing_cross_entropy(logits_v, labels[1], agree)
        metrics = {"loss_t": of_t, "loss_v": of_v, "label_agreement": agree.mean()}
        return of_t + of_v, metrics

    def update(
        self,
        state: Copies,
        labels: Int[Array, "2 B"],
        aux: dict[str, Float[Array, ""]],
        ends_epoch: Bool[Array, ""],
    ) -> tuple[Copies, dict[str, Float[Array, ""]]]:
        """Change nothing: the state is constant within an epoch."""
        return state, aux

    def average(self, before: Copies, after: Copies, fraction: float) -> Copies:
        """Average the classifiers of copy V, and normalize the mean."""
        mean = (1 - fraction) * before.class_weights + fraction * after.class_weights
        return after._replace(class_weights=normalize(jnp.asarray(mean)))


METHODS = {"reclip": lambda config: ReCLIP(**config.reclip)}
