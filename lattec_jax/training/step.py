"""One jitted training step: from images and indices to the next state and metrics for the log.

Cropping, both towers, mixing, pseudo-labels, gradient, optimizer and prototype update are one
compiled function; within a step nothing comes back to the host. The step knows methods by their
interface only (`lattec_jax.methods.base`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from lattec_jax.methods.base import EpochMethod, Features, Method, Targets, required
from lattec_jax.models.clip import Params
from lattec_jax.runtime import compilation_cache, sharding
from lattec_jax.training.augmentation import (
    Augmentation,
    AugmentParams,
    apply_augment,
    sample_augment_params,
)
from lattec_jax.training.microbatches import StepEncoder
from lattec_jax.training.state import (
    TrainState,
    clamp_logit_scale,
    select_trainable,
    state_shardings,
)

Metrics = dict[str, Float[Array, ""]]


class DeviceData(NamedTuple):
    """Arrays that stay on the device for the full run. N images, K kinds of text, C classes."""

    # One class-description per class (first template, first name), cropped to the length bucket of
    # the longest.
    class_tokens: Int[Array, "C M"]
    description_tokens: Int[Array, "NK L"]  # index n · K + k is the k-th text of image n
    present: Bool[Array, "N K"]  # False where that text is missing
    targets: Targets  # of all N images
    pixels: UInt8[Array, "N H W 3"] | None  # None if the image cache is streamed
    sizes: Int[Array, "N 2"] | None  # None if it is streamed, or nothing is augmented
    pretrained_features: Float[Array, "N D"] | None = None  # of the images


class Batch(NamedTuple):
    """Arrays that the host sends for a step; see `lattec_jax.training.batches.HostBatch`."""

    images: Int[Array, " B"]
    text_indices: tuple[Int[Array, " n"], ...]
    text_positions: Int[Array, " BK"]
    text_images: Int[Array, "B K"]
    ends_epoch: Bool[Array, ""]
    is_logged: Bool[Array, ""]  # whether the step's metrics are
    pixels: UInt8[Array, "B H W 3"] | None = None  # only where the image cache is streamed
    sizes: Int[Array, "B 2"] | None = None


class StepSettings(NamedTuple):
    """Static settings of a step."""

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augmentation: Augmentation | None  # None: the pixels are those of evaluation
    num_microbatches: int = 1  # `lattec_jax.training.microbatches`


def unique_classes(
    labels: Int[Array, "J B"], num_classes: int
) -> tuple[Int[Array, " U"], Int[Array, "J B"]]:
    """Return the U classes that are encoded for a batch, and the index of each label's class among
    them.

    U is static: min(C, J · B). If it is C, the classes are all classes in order. Otherwise they are
    the distinct labels in ascending order, padded with class 0.
    """
    if num_classes <= labels.size:
        return jnp.arange(num_classes), labels
    classes, positions = jnp.unique(
        labels.reshape(-1), return_inverse=True, size=labels.size, fill_value=0
    )  # [J, B] -> [J · B] -> [U], [J · B]
    return classes, positions.reshape(labels.shape)


def encode_images(
    encoder: StepEncoder,
    key: Key[Array, ""],
    device_data: DeviceData,
    batch: Batch,
    settings: StepSettings,
) -> Float[Array, "B D"]:
    """Encode augmented crops, or evaluation pixels where nothing is augmented.

    The random parameters are drawn for the full batch, crops are made for one microbatch at a time.
    """
    resident, augment_params = batch.pixels is None, None
    if settings.augmentation is not None:
        sizes = device_data.sizes if resident else batch.sizes
        sizes = required(sizes, "sizes")
        augment_params = sample_augment_params(
            key, sizes[batch.images] if resident else sizes, settings.augmentation
        )
    mean, std = (jnp.asarray(x).reshape(1, 1, 1, 3) for x in (settings.mean, settings.std))

    def make_images(microbatch: tuple[jax.Array, AugmentParams | None]) -> Float[Array, "m H W 3"]:
        indices_or_pixels, augment_params = microbatch
        pixels = indices_or_pixels
        if resident:
            pixels = required(device_data.pixels, "pixels")[indices_or_pixels]
        # The image cache is replicated; without the constraint each device might gather and crop
        # the images of all.
        pixels = jax.lax.with_sharding_constraint(pixels, sharding.over_batch(encoder.mesh))
        if augment_params is None:
            return (pixels / 255 - mean) / std
        return (apply_augment(pixels, augment_params, settings.image_size) - mean) / std

    return encoder.encode_images(
        (batch.images if resident else batch.pixels, augment_params), make_images
    )


def encode_texts(
    encoder: StepEncoder, buckets: list[Int[Array, "_n _L"]]
) -> list[Float[Array, "_n D"]]:
    """Encode token matrices; those of the same length are concatenated and encoded as one."""
    by_length: dict[int, list[int]] = {}
    for index, tokens in enumerate(buckets):
        by_length.setdefault(tokens.shape[1], []).append(index)
    concatenated = [jnp.concatenate([buckets[i] for i in same]) for same in by_length.values()]
    encoded: dict[int, jax.Array] = {}
    for same, features in zip(by_length.values(), encoder.encode_texts(concatenated), strict=True):
        ends = np.cumsum([buckets[i].shape[0] for i in same])
        encoded |= dict(zip(same, jnp.split(features, ends[:-1]), strict=True))
    return [encoded[i] for i in range(len(buckets))]


def compute_features_and_labels(
    encoder: StepEncoder,
    method: Method,
    method_state: object,
    image_features: Float[Array, "B D"],
    device_data: DeviceData,
    batch: Batch,
    bucket_lengths: tuple[int, ...],
) -> tuple[Features, Int[Array, "J B"]]:
    """Compute the method's labels, and the features that its loss needs: those of the images, of
    the classes of the labels, and of the descriptions."""
    class_weights = method.class_weights(
        method_state, lambda: encoder.encode_texts([device_data.class_tokens])[0]
    )
    targets = Targets(*(None if t is None else t[batch.images] for t in device_data.targets))
    labels = method.labels(
        jax.lax.stop_gradient(image_features),
        jax.lax.stop_gradient(jnp.asarray(class_weights)),
        targets._replace(indices=batch.images),
        method_state,
    )
    num_classes = device_data.class_tokens.shape[0]
    if method.encodes_all_classes:
        classes, positions = jnp.arange(num_classes), labels
    else:
        classes, positions = unique_classes(labels, num_classes)
    buckets = [device_data.class_tokens[classes]]
    for indices, length in zip(batch.text_indices, bucket_lengths, strict=True):
        buckets.append(device_data.description_tokens[indices, :length])
    class_features, *texts = encode_texts(encoder, buckets)
    batch_size, kinds = batch.text_images.shape
    dimension = image_features.shape[1]
    if texts:
        # [B · K, D] in the order of the buckets -> [B, K, D]
        descriptions = jnp.concatenate(texts)[batch.text_positions]
        descriptions = descriptions.reshape(batch_size, kinds, dimension)
    else:
        descriptions = jnp.zeros((batch_size, 0, dimension), image_features.dtype)
    pretrained_features = device_data.pretrained_features
    if pretrained_features is not None:
        pretrained_features = pretrained_features[batch.images]
    features = Features(
        images=image_features,
        class_texts=class_features[positions],  # [U, D] -> [J, B, D]
        descriptions=descriptions,
        present=device_data.present[batch.text_images, jnp.arange(kinds)],
        logit_scale=encoder.logit_scale,
        classes=class_features if method.encodes_all_classes else None,
        pretrained_features=pretrained_features,
    )
    return features, labels


def prediction_metrics(
    predictions: Int[Array, " B"], zero_shot: Int[Array, " B"], num_classes: int
) -> Metrics:
    """Return how a batch's predictions are distributed over the classes, and how often they are
    the zero-shot labels (`lattec_jax.reporting.health` watches them).

    `batch_class_entropy` is divided by the entropy of a uniform distribution.
    """
    fractions = jnp.bincount(predictions, length=num_classes) / predictions.size
    return {
        "batch_class_entropy": jax.scipy.special.entr(fractions).sum() / math.log(num_classes),
        "batch_largest_fraction": fractions.max(),
        "batch_largest_class": fractions.argmax().astype(jnp.float32),
        "agreement_with_frozen": jnp.mean(predictions == zero_shot),
    }


# Not part of the step, because it reads all parameters: the loop calls it for logged steps only.
# The update exists only inside the step, so its norm is computed there, under `lax.cond`
# (`is_logged`). The gradient norm is computed at every step: a signal can make any step the last,
# and parameters must not be saved after a gradient that is not finite.
parameter_norm = jax.jit(optax.tree.norm)


def apply_gradient(
    method: Method,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradient: Params,
    labels: Int[Array, "J B"],
    is_logged: Bool[Array, ""],
) -> tuple[Params, optax.OptState, Float[Array, ""]]:
    """Return the next parameters and optimizer state, and the norm of the update, or 0 where it is
    not logged.

    An `EpochMethod` may reject the batch: then both stay as they are.
    """
    trainable_params = select_trainable(state.params, method.trainable)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes floats and step counts
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, trainable_params)
    # optax returns the tree that it was given; its type does not say so.
    updated = cast(Params, optax.apply_updates(trainable_params, updates))
    norm = jax.lax.cond(is_logged, optax.tree.norm, lambda _: jnp.float32(0), updates)
    if isinstance(method, EpochMethod):
        accepted = method.should_update(labels)
        updated, optimizer_state, norm = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old),
            (updated, optimizer_state, norm),
            (trainable_params, state.optimizer, jnp.zeros_like(norm)),
        )
    return clamp_logit_scale({**state.params, **updated}), optimizer_state, norm


def make_train_step(
    definition: nnx.GraphDef,
    method: Method,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    settings: StepSettings,
    mesh: Mesh,
) -> Callable[[TrainState, DeviceData, Batch, tuple[int, ...]], tuple[TrainState, Metrics]]:
    """Return the jitted step of one run: a function of the state (which it donates), the device
    data, the batch, and the static lengths of its text buckets.

    Args:
        optimizer: one that counts its steps (`count` in its state), as those with a schedule do.
        schedule: the optimizer's, for the log.
    """

    def loss_fn(trainable: Params, state: TrainState, *inputs: Any) -> tuple[jax.Array, tuple]:
        device_data, batch, bucket_lengths = inputs
        params = {**state.params, **trainable}
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        encoder = StepEncoder(definition, params, mesh, settings.num_microbatches)
        images = encode_images(encoder, key, device_data, batch, settings)
        features, labels = compute_features_and_labels(
            encoder, method, state.method, images, device_data, batch, bucket_lengths
        )
        loss, aux = method.loss(features, labels, state.method)
        return loss, (labels, aux)

    def step(
        state: TrainState, device_data: DeviceData, batch: Batch, bucket_lengths: tuple[int, ...]
    ) -> tuple[TrainState, Metrics]:
        trainable_params = select_trainable(state.params, method.trainable)
        # Accelerators otherwise multiply float32 in fewer bits; bfloat16 towers are not touched.
        with jax.default_matmul_precision("highest"):
            (loss, (labels, aux)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
                trainable_params, state, device_data, batch, bucket_lengths
            )
        params, optimizer_state, update_norm = apply_gradient(
            method, optimizer, state, gradient, labels, batch.is_logged
        )
        method_state, metrics = method.update(state.method, labels, aux, batch.ends_epoch)
        count = optax.tree.get_all_with_path(state.optimizer, "count")[0][1]
        metrics |= {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "update_norm": update_norm,
            "logit_scale": jnp.exp(params["logit_scale"]),
            "learning_rate": jnp.asarray(schedule(count)),
        }
        if method.predicted_label is not None:
            zero_shot = required(device_data.targets.zero_shot, "zero_shot")[batch.images]
            num_classes = device_data.class_tokens.shape[0]
            metrics |= prediction_metrics(labels[method.predicted_label], zero_shot, num_classes)
        new = TrainState(state.step + 1, state.seed, params, optimizer_state, method_state)
        # The output keeps the sharding of the input: otherwise the compiler may choose another one
        # for an array, and the next call compiles again.
        return jax.lax.with_sharding_constraint(new, state_shardings(new, mesh)), metrics

    options = compilation_cache.options(mesh)
    return jax.jit(step, donate_argnums=0, static_argnums=3, compiler_options=options)
