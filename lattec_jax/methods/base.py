"""What the train loop asks of a method, and what it hands to one.

A step goes: image features; the method's `classifier`; from both the method's `labels`; the texts
that these labels name are encoded; `loss`; after the gradient step, `update` of the method's own
state. Everything here is a pure function of arrays and runs inside one jitted step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Bool, Float, Int

State = Any  # a pytree of arrays, such as the prototypes
EncodeClasses = Callable[[], Float[Array, "C D"]]


class Targets(NamedTuple):
    """What is known of each image of a batch before the step. Fields not asked for are None."""

    zero_shot: Int[Array, " B"] | None = None  # pseudo-labels of the frozen model
    true: Int[Array, " B"] | None = None  # only for methods that require "labels"


class Features(NamedTuple):
    """Features of one batch by the model being trained; unit vectors of length D."""

    images: Float[Array, "B D"]
    class_texts: Float[Array, "J B D"]  # of the class that each of J labels gives each image
    descriptions: Float[Array, "B K D"]  # of K kinds of generated text
    present: Bool[Array, "B K"]  # False where an image has no text of a kind
    scale: Float[Array, ""]  # inverse temperature


class Method(Protocol):
    """A way to adapt CLIP."""

    name: str
    trains: bool  # False: the pre-trained model is evaluated as it is
    requires: frozenset[str]  # of "zero_shot" (pseudo-labels), "descriptions", "labels"

    def init(self, class_features: Float[Array, "C D"]) -> State:
        """The method's state at step 0, from the class-descriptions of the pre-trained model."""

    def classifier(self, state: State, encode_classes: EncodeClasses) -> Float[Array, "C D"]:
        """The unit vector of each class. `encode_classes` encodes all class-descriptions."""

    def labels(
        self,
        images: Float[Array, "B D"],
        classifier: Float[Array, "C D"],
        targets: Targets,
    ) -> Int[Array, "J B"]:
        """The classes whose descriptions the step needs: J labels for each image."""

    def loss(
        self, features: Features, labels: Int[Array, "J B"], state: State
    ) -> tuple[Float[Array, ""], Any]:
        """The loss, and whatever `update` and the log need from it."""

    def update(
        self, state: State, labels: Int[Array, "J B"], aux: Any, ends_epoch: Bool[Array, ""]
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        """The next state, and figures for the log."""
