"""What the train loop asks of a method, and what it hands to one.

A step goes: image features; the method's `classifier`; from both the method's `labels`; the texts
that these labels name are encoded; `loss`; after the gradient step, `update` of the method's own
state. These are pure functions of arrays and run inside one jitted step. `begin_epoch` runs on the
host, between steps.

`Method` has a default for everything but its name and, where it trains, `labels` and `loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

State = Any  # a pytree of arrays, such as the prototypes
EncodeClasses = Callable[[], Float[Array, "C D"]]


class Targets(NamedTuple):
    """What is known of each image of a batch before the step. Fields not asked for are None."""

    zero_shot: Int[Array, " B"] | None = None  # pseudo-labels of the frozen model
    true: Int[Array, " B"] | None = None  # only for methods that require "labels"
    rows: Int[Array, " B"] | None = None  # which of the N training images it is


class Features(NamedTuple):
    """Features of one batch by the model being trained; unit vectors of length D."""

    images: Float[Array, "B D"]
    class_texts: Float[Array, "J B D"]  # of the class that each of J labels gives each image
    descriptions: Float[Array, "B K D"]  # of K kinds of generated text
    present: Bool[Array, "B K"]  # False where an image has no text of a kind
    logit_scale: Float[Array, ""]  # inverse temperature
    classes: Float[Array, "C D"] | None = None  # where the method `encodes_all_classes`
    frozen: Float[Array, "B D"] | None = None  # the pre-trained model's, where it is required


class TrainingSetFeatures(NamedTuple):
    """The whole training set under the current model, for `begin_epoch`; nothing is augmented."""

    images: Callable[[], Float[np.ndarray, "N D"]]
    classes: Callable[[], Float[np.ndarray, "C D"]]  # the ensemble of all templates
    frozen: Float[np.ndarray, "N D"] | None  # image features of the pre-trained model


class Method:
    """A way to adapt CLIP, with what most ways have in common.

    Attributes:
        name: as in `config.method.name`.
        trains: False: the pre-trained model is evaluated as it is.
        requires: what must be there before training, of "zero_shot" (pseudo-labels),
            "descriptions", "labels" (true ones) and "frozen_features" (of the training images by
            the pre-trained model).
        description_kinds: of generated text that `loss` gets features of.
        augments: False: train on the pixels of evaluation instead of augmented crops.
        class_text: whether the class-descriptions are among the texts that it learns from.
        encodes_all_classes: True: `loss` gets the features of all classes, with their gradient.
    """

    name: str
    trains: bool = True
    requires: frozenset[str] = frozenset()
    description_kinds: tuple[str, ...] = ()
    augments: bool = True
    class_text: bool = True
    encodes_all_classes: bool = False

    def settings(self) -> dict[str, Any]:
        """The method's own lines of `results.json`; JSON values."""
        return {}

    def trainable(self, name: str) -> bool:
        """Whether a parameter (`lattec_jax.models.checkpoint.expected_shapes`) is trained. The
        others have no gradient, no moments and no decay."""
        return True

    def max_epochs(self, images: int) -> int | None:
        """A bound on the epochs beside `config.train.epochs`, from the number of images."""
        return None

    def init(self, class_features: Float[Array, "C D"], images: int) -> State:
        """The method's state at step 0.

        Args:
            class_features: the zero-shot classifier of the model that training starts from: the
                pre-trained one, or that of `config.init`.
            images: N, for training.
        """
        return ()

    def start_from(self, state: State, prototypes: Float[Array, "C D"]) -> State:
        """The method's state at step 0 where `config.init` brings the classes' vectors; here they
        are not used.

        Args:
            state: of `init`, of the class-descriptions as the start's parameters encode them.
            prototypes: the vectors.
        """
        return state

    def begin_epoch(self, state: State, survey: TrainingSetFeatures) -> State:
        """The state with which an epoch begins; the same tree, shapes and types. It is saved with
        the checkpoints, so a run that continues inside of an epoch does not come here first."""
        return state

    def class_weights(self, state: State, encode_classes: EncodeClasses) -> Float[Array, "C D"]:
        """The unit vector of each class; here the current text features of the templates.

        Args:
            state: of the method.
            encode_classes: encodes the class-descriptions: inside of a step those of the first
                template, for results the ensemble.
        """
        return encode_classes()

    def frozen_class_weights(
        self, state: State, encode_first: EncodeClasses
    ) -> Float[Array, "C D"] | None:
        """Unit vectors for the pre-trained model's image features, whose cosines then are half of
        the prediction; None where the adapted model predicts alone.

        Args:
            state: of the method.
            encode_first: encodes the class-descriptions of the first template.
        """
        return None

    def labels(
        self,
        images: Float[Array, "B D"],
        class_weights: Float[Array, "C D"],
        targets: Targets,
        state: State,
    ) -> Int[Array, "J B"]:
        """The classes whose descriptions the step needs: J labels for each image."""
        raise NotImplementedError

    def predictions(self, labels: Int[Array, "J B"]) -> Int[Array, " B"] | None:
        """Those of the labels that the current model predicts; None: they are not among them."""
        return None

    def prototypes(self, state: State) -> Float[Array, "C D"] | None:
        """The unit vectors of the classes that the state keeps; None: it keeps none."""
        return None

    def mixer_weights(self, texts: Float[Array, "... D"], state: State) -> Float[Array, ...] | None:
        """The weights that texts have in an image's mix; None: nothing is mixed."""
        return None

    def should_update(self, labels: Int[Array, "J B"]) -> bool | Bool[Array, ""]:
        """Whether a batch with these labels moves the model; if not, the optimizer rests too."""
        return True

    def loss(
        self, features: Features, labels: Int[Array, "J B"], state: State
    ) -> tuple[Float[Array, ""], Any]:
        """The loss, and whatever `update` and the log need from it."""
        raise NotImplementedError

    def update(
        self, state: State, labels: Int[Array, "J B"], aux: Any, ends_epoch: Bool[Array, ""]
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        """The next state, and metrics for the log."""
        return state, {}

    def average(self, before: State, after: State, fraction: float) -> State:
        """The state half-way for WiSE-FT: `share` of `after`, the rest of `before`."""
        return after
