"""LatteCLIP (arXiv 2410.08211, Sec. 3): mixed texts, two pseudo-labels, prototypes with momentum.

Letters: B images in a batch, C classes, D embedding size, K kinds of generated text, J
pseudo-labels per image (the frozen model's and the current one's). Features and prototypes are unit
vectors.

Where the authors' released code departs from the paper, a field of `LatteCLIP` chooses; each says
which. Two bugs of the released code, both in the weights of the class-descriptions, are not
reproduced:

- The `[B]` weights multiply the `[B, D]` features along D, which runs only because B = D = 512
  there.
- The class-description of the zero-shot label is multiplied by the weight of the current label's
  class-description; the denominator has its own.

Without them that loop and the preset "released_code" agree (`tests/methods/test_released_loop.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from lattec_jax.methods.base import ClassWeights, Features, PrototypeMethod, Targets, required
from lattec_jax.methods.contrastive import info_nce
from lattec_jax.models.clip import normalize

WEIGHT_FLOOR = 1e-6  # keeps the sum of the weights above zero, Eq. (1)


class Prototypes(NamedTuple):
    """The state: one unit vector per class."""

    current: Float[Array, "C D"]
    mixer: Float[Array, "C D"]  # those that Eq. (1) compares with


def mixer_weights(
    texts: Float[Array, "... D"], prototypes: Float[Array, "C D"]
) -> Float[Array, ...]:
    """Eq. (1): how well a text tells the classes apart; no gradient flows through it.

    With `s = g(T)·p` over all classes, `w = top1(s) − top2(s) + 1e-6`.
    """
    similarities = jax.lax.stop_gradient(texts @ prototypes.T)  # [..., C]
    # Two maxima: `top_k` takes thirty times as long for 10,000 classes on a CPU.
    best = jnp.argmax(similarities, axis=-1, keepdims=True)  # [..., 1]
    classes = jax.lax.broadcasted_iota(best.dtype, similarities.shape, similarities.ndim - 1)
    rest = jnp.where(classes == best, -jnp.inf, similarities)
    return similarities.max(axis=-1) - rest.max(axis=-1) + WEIGHT_FLOOR


def mix_texts(
    texts: Float[Array, "B T D"],
    weights: Float[Array, "B T"],
    prototypes: Float[Array, "B D"],
    alpha: float,
) -> Float[Array, "B D"]:
    """Eq. (2): `t̄ = (1−α) · Σ wᵢ g(Tᵢ) / Σ wᵢ + α · p_c`, not normalized again.

    No gradient flows through the prototypes. A weight is zero where a text is missing; an image
    without any text keeps the prototype of its pseudo-label.
    """
    prototypes = jax.lax.stop_gradient(prototypes)
    total = weights.sum(axis=1, keepdims=True)  # [B, 1]
    fraction = weights / jnp.where(total > 0, total, 1.0)
    mean = jnp.einsum("bt,btd->bd", fraction, texts)
    mean = jnp.where(total > 0, mean, prototypes)
    return (1 - alpha) * mean + alpha * prototypes


def update_prototypes(
    prototypes: Float[Array, "C D"],
    texts: Float[Array, "B D"],
    labels: Int[Array, " B"],
    momentum: float,
) -> Float[Array, "C D"]:
    """Update by an exponential moving average (Sec. 3.2): `p ← normalize((1−μ)·mean(t̄) + μ·p)` for
    each class in `labels`; other classes keep their prototype.

    The paper's formula has no normalization; the released code normalizes, as here: a prototype is
    a unit vector, like the features that it is compared with.
    """
    classes = prototypes.shape[0]
    sums = jax.ops.segment_sum(texts, labels, num_segments=classes)  # [C, D]
    ones = jnp.ones_like(texts[:, :1])
    counts = jax.ops.segment_sum(ones, labels, num_segments=classes)  # [C, 1] texts of each class
    means = sums / jnp.maximum(counts, 1)  # [C, D]
    updated = normalize((1 - momentum) * means + momentum * prototypes)
    return jnp.where(counts > 0, updated, prototypes)


@dataclasses.dataclass(frozen=True)
class LatteCLIP(PrototypeMethod):
    """The method. Its fields are set from `config.method`, whose keys `configs/common.py`
    explains."""

    alpha: float
    momentum: float
    class_text: bool = True  # Table 2: whether the class-description takes part in the mix
    description_kinds: tuple[str, ...] = ("image", "group")
    redrawn_kinds: tuple[str, ...] = ()  # the released code: those of groups
    label_names: tuple[str, ...] = ("zero_shot", "current")  # Table 3: L_zs and L_ft
    use_mixer: bool = True  # Table 3: False sets all weights to 1
    prototype_update: str = "sequential"  # the released code: "joint"
    mixer_prototypes: str = "current"  # the released code: "epoch_start"
    loss_reduction: str = "sum"  # the released code: "mean"

    name = "latteclip"
    requires: frozenset[str] = dataclasses.field(init=False)
    predicted_label: int | None = dataclasses.field(init=False)  # of `c_ft`, where it is used

    def __post_init__(self) -> None:
        requires = frozenset({"descriptions"}) if self.description_kinds else frozenset[str]()
        current = self.label_names.index("current") if "current" in self.label_names else None
        # The class is frozen.
        object.__setattr__(self, "requires", requires)
        object.__setattr__(self, "predicted_label", current)

    def settings(self) -> dict[str, Any]:
        """Return α and μ."""
        return {"alpha": self.alpha, "momentum": self.momentum}

    def init(self, class_features: Float[Array, "C D"], num_images: int) -> Prototypes:
        """Prototypes start as the class-descriptions of the pre-trained model."""
        return Prototypes(class_features, class_features)

    def start_from(self, state: Prototypes, prototypes: Float[Array, "C D"]) -> Prototypes:
        """Continue with the prototypes of another run."""
        return Prototypes(prototypes, prototypes)

    def prototypes(self, state: Prototypes) -> ClassWeights:
        """Inference is `argmax_c f(x)·p_c`."""
        return state.current

    def labels(
        self,
        images: Float[Array, "B D"],
        class_weights: Float[Array, "C D"],
        targets: Targets,
        state: Prototypes,
    ) -> Int[Array, "J B"]:
        """`c_zs`, fixed from the frozen model, and `c_ft = argmax_c f(x)·p_c` of this step."""
        known: dict[str, jax.Array] = {}
        if "zero_shot" in self.label_names:
            known["zero_shot"] = required(targets.zero_shot, "zero_shot")
        if "current" in self.label_names:
            known["current"] = jnp.argmax(images @ class_weights.T, axis=1).astype(jnp.int32)
        return jnp.stack([known[name] for name in self.label_names])

    def loss(
        self, features: Features, labels: Int[Array, "J B"], state: Prototypes
    ) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
        """Eq. (3): InfoNCE between `f(x)` and `t̄`, added over the pseudo-labels."""
        description_weights = self.mixer_weights(features.descriptions, state)  # [B, K]
        description_weights *= features.present.astype(description_weights.dtype)
        losses, mixed, class_text_weights = [], [], []
        for class_texts, label in zip(features.class_texts, labels, strict=True):
            class_text_weight = self.mixer_weights(class_texts, state)  # [B]
            class_text_weight = class_text_weight * float(self.class_text)
            texts = jnp.concatenate([class_texts[:, None], features.descriptions], axis=1)
            weights = jnp.concatenate([class_text_weight[:, None], description_weights], axis=1)
            t_bar = mix_texts(texts, weights, state.current[label], self.alpha)
            loss = info_nce(features.images, t_bar, features.logit_scale)
            # `info_nce` is the sum of two directions.
            losses.append(loss if self.loss_reduction == "sum" else loss / 2)
            mixed.append(t_bar)
            class_text_weights.append(class_text_weight)
        aux = {
            "losses": jnp.stack(losses),
            "mixed": jax.lax.stop_gradient(jnp.stack(mixed)),  # [J, B, D]
            "class_text_weights": jnp.stack(class_text_weights),  # [J, B]
            "description_weights": description_weights,  # [B, K]
            "present": features.present,
        }
        return sum(losses[1:], losses[0]), aux

    def update(
        self,
        state: Prototypes,
        labels: Int[Array, "J B"],
        aux: dict[str, jax.Array],
        ends_epoch: Bool[Array, ""],
    ) -> tuple[Prototypes, dict[str, Float[Array, ""]]]:
        """Update the prototypes: label by label (paper) or by one mean over all (released code)."""
        current, mixed = state.current, aux["mixed"]
        if self.prototype_update == "joint":
            # [J, B, D] -> [J · B, D]
            mixed = mixed.reshape(-1, mixed.shape[-1])
            current = update_prototypes(current, mixed, labels.reshape(-1), self.momentum)
        else:
            for t_bar, label in zip(mixed, labels, strict=True):
                current = update_prototypes(current, t_bar, label, self.momentum)
        mixer = current
        if self.mixer_prototypes == "epoch_start":
            mixer = jnp.where(ends_epoch, current, state.mixer)
        return Prototypes(current, mixer), self._metrics(labels, aux)

    def average(self, before: Prototypes, after: Prototypes, fraction: float) -> Prototypes:
        """Prototypes between those of two states, unit vectors again."""
        mean = jax.tree.map(
            lambda b, a: normalize((1 - fraction) * b + fraction * a), before, after
        )
        return Prototypes(*mean)

    def mixer_weights(self, texts: Float[Array, "... D"], state: Prototypes) -> Float[Array, ...]:
        """Eq. (1); 1 for every text without the mixer."""
        if not self.use_mixer:
            return jnp.ones(texts.shape[:-1], texts.dtype)
        return mixer_weights(texts, state.mixer)

    def _metrics(
        self, labels: Int[Array, "J B"], aux: dict[str, jax.Array]
    ) -> dict[str, Float[Array, ""]]:
        """Return each loss, the mean weight of each kind of text, and how often the two
        pseudo-labels agree."""
        metrics = {
            f"loss_{name}": loss for name, loss in zip(self.label_names, aux["losses"], strict=True)
        }
        metrics["weight_class"] = aux["class_text_weights"].mean()
        for index, kind in enumerate(self.description_kinds):
            weights = aux["description_weights"][:, index]
            count = jnp.maximum(aux["present"][:, index].sum(), 1)
            metrics[f"weight_{kind}"] = weights.sum() / count.astype(weights.dtype)
        if len(self.label_names) == 2:
            metrics["label_agreement"] = jnp.mean(labels[0] == labels[1])
        return metrics


def from_config(config: ConfigDict) -> LatteCLIP:
    """Make the method from the section `config.method`."""
    kinds = tuple(kind for kind in config.texts if kind != "class")
    redrawn = config.group_text == "redrawn"
    return LatteCLIP(
        alpha=config.alpha,
        momentum=config.momentum,
        class_text="class" in config.texts,
        description_kinds=kinds,
        redrawn_kinds=tuple(kind for kind in kinds if kind.startswith("group") and redrawn),
        label_names=tuple(config.labels),
        use_mixer=config.mixer,
        prototype_update=config.prototype_update,
        mixer_prototypes=config.mixer_prototypes,
        loss_reduction=config.loss_reduction,
    )


METHODS = {"latteclip": from_config}
