"""The interface between the training loop and a method.

One step computes the image features; the method's `class_weights`; from both the method's `labels`;
the features of the texts that these labels select; the `loss`; and, after the gradient step, the
`update` of the method's own state. These are pure functions of arrays inside one jitted step.

`Method` is all that most methods need, and has a default for everything but the name and, where
the method trains, `labels` and `loss`. Two extensions are optional: `PrototypeMethod` for a method
whose state has a vector for each class, and `EpochMethod` for one that labels the training set
between epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Array, Bool, Float, Int

State = Any  # a pytree of arrays, such as the prototypes
ClassWeights = Float[Array, "C D"] | Float[np.ndarray, "C D"]  # NumPy's outside of a step
EncodeClasses = Callable[[], ClassWeights]
T = TypeVar("T")


def required(value: T | None, name: str) -> T:
    """Return an optional array that this method or step needs; ValueError if it is None."""
    if value is None:
        raise ValueError(f"the step needs `{name}`, which is None")
    return value


class Targets(NamedTuple):
    """What is known of each image of a batch before the step. In a step only `true` may be None."""

    zero_shot: Int[Array, " B"] | None = None  # pseudo-labels of the frozen model
    true: Int[Array, " B"] | None = None  # only for methods that require "labels"
    indices: Int[Array, " B"] | None = None  # of the images in the training set


class Features(NamedTuple):
    """Features of one batch by the model being trained; unit vectors of length D."""

    images: Float[Array, "B D"]
    class_texts: Float[Array, "J B D"]  # of the class that each of J labels gives each image
    descriptions: Float[Array, "B K D"]  # of K kinds of generated text
    present: Bool[Array, "B K"]  # False where an image has no text of a kind
    logit_scale: Float[Array, ""]
    classes: Float[Array, "C D"] | None = None  # where the method `encodes_all_classes`
    pretrained_features: Float[Array, "B D"] | None = None  # of the images, where required


class Method:
    """A way to adapt CLIP."""

    name: str  # as in `config.method.name`
    trains: bool = True  # False: the pre-trained model is evaluated as it is
    # What must exist before training besides pseudo-labels: "descriptions", "labels" (true ones),
    # "pretrained_features" (of the training images).
    requires: frozenset[str] = frozenset()
    description_kinds: tuple[str, ...] = ()  # of generated text that `loss` gets features of
    # Those of them whose text is drawn again at every step, from all images with the same
    # zero-shot label.
    redrawn_kinds: tuple[str, ...] = ()
    augments: bool = True  # False: train on the pixels of evaluation instead of augmented crops
    class_text: bool = True  # whether the model learns from the class-descriptions too
    encodes_all_classes: bool = False  # True: `loss` gets the features of all, with their gradient
    # The index, among the J labels of an image, of the class that the current model predicts; None:
    # none of them is a prediction.
    predicted_label: int | None = None

    def settings(self) -> dict[str, Any]:
        """Return the method's own entries of `results.json`; JSON values."""
        return {}

    def trainable(self, name: str) -> bool:
        """Return whether the parameter `name` (`lattec_jax.models.checkpoint.expected_shapes`) is
        trained. The others have no gradient, no moments and no decay."""
        return True

    def init(self, class_features: Float[Array, "C D"], num_images: int) -> State:
        """Return the method's state at step 0, for N images in the training set.

        `class_features` is the zero-shot head of the model that training starts from: the
        pre-trained one, or that of `config.init`.
        """
        return ()

    def class_weights(self, state: State, encode_classes: EncodeClasses) -> ClassWeights:
        """Return the unit vector of each class; by default the current text features.

        `encode_classes` encodes the class-descriptions: inside of a step those of the first
        template, for results the ensemble.
        """
        return encode_classes()

    def labels(
        self,
        images: Float[Array, "B D"],
        class_weights: Float[Array, "C D"],
        targets: Targets,
        state: State,
    ) -> Int[Array, "J B"]:
        """Return J classes for each image; the step then encodes the descriptions of these classes.

        No gradient flows through `images` and `class_weights`.
        """
        raise NotImplementedError

    def loss(
        self, features: Features, labels: Int[Array, "J B"], state: State
    ) -> tuple[Float[Array, ""], Any]:
        """Return the loss over the full batch, a scalar that is differentiated with respect to the
        trained parameters, and a pytree of arrays that is passed to `update` as `aux`."""
        raise NotImplementedError

    def update(
        self, state: State, labels: Int[Array, "J B"], aux: Any, ends_epoch: Bool[Array, ""]
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        """Return the next state, and metrics for the log."""
        return state, {}


class PrototypeMethod(Method):
    """A method whose state has a unit vector for each class, by which it also predicts. The log and
    the report show how these vectors move, and WiSE-FT averages them."""

    def prototypes(self, state: State) -> ClassWeights:
        """Return the unit vector of each class."""
        raise NotImplementedError

    def class_weights(self, state: State, encode_classes: EncodeClasses) -> ClassWeights:
        """Return the prototypes."""
        return self.prototypes(state)

    def start_from(self, state: State, prototypes: Float[Array, "C D"]) -> State:
        """Return the state at step 0, from that of `init`, where `config.init` names a run with
        prototypes; by default they are not used."""
        return state

    def average(self, before: State, after: State, fraction: float) -> State:
        """Return the state for WiSE-FT: `fraction` of `after`, the rest of `before`."""
        raise NotImplementedError

    def mixer_weights(self, texts: Float[Array, "... D"], state: State) -> Float[Array, ...] | None:
        """Return the weights of texts in the mixed text of an image; None: nothing is mixed."""
        return None


class TrainingSetFeatures(NamedTuple):
    """Unit features of the full training set for `EpochMethod.begin_epoch`; nothing is augmented.

    Those by the current model are computed when they are called for.
    """

    images: Callable[[], Float[np.ndarray, "N D"]]
    classes: Callable[[], Float[np.ndarray, "C D"]]  # the ensemble of all templates
    pretrained_features: Float[np.ndarray, "N D"] | None  # image features of the pre-trained model


class EpochMethod(Method):
    """A method that looks at the full training set before each epoch, on the host, and may have a
    second predictor for the features of the pre-trained model."""

    def max_epochs(self, num_images: int) -> int | None:
        """Return an upper bound on the number of epochs, beside that of `config.train.epochs`, or
        None."""
        return None

    def begin_epoch(self, state: State, features: TrainingSetFeatures) -> State:
        """Return the state with which an epoch begins: the same tree, shapes and types.

        It is saved with the checkpoints: a run that continues within an epoch does not call this
        again.
        """
        return state

    def should_update(self, labels: Int[Array, "J B"]) -> Bool[Array, ""]:
        """Return whether a batch with these labels changes parameters and optimizer state."""
        raise NotImplementedError

    def pretrained_class_weights(
        self, state: State, encode_first: EncodeClasses
    ) -> ClassWeights | None:
        """Return unit vectors for the pre-trained model's image features; the prediction is then
        the mean of both cosines. None: the adapted model predicts alone.

        `encode_first` encodes the class-descriptions of the first template.
        """
        return None
