"""One training step, jitted: images and indices in, the next state and metrics for the log out.

Cropping, both towers, mixing, pseudo-labels, gradient, optimizer and prototype update happen inside
of one compiled function; nothing comes back to the host between steps. The step knows no method by
name (`lattec_jax.methods.base`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from lattec_jax.methods.base import Features, Method, Targets
from lattec_jax.models.clip import Params
from lattec_jax.runtime import compilation_cache, sharding
from lattec_jax.training.augmentation import Augmentation, Draws, apply_draws, draw
from lattec_jax.training.microbatches import StepEncoder
from lattec_jax.training.state import TrainState, clamp_logit_scale, state_shardings, trainable

Metrics = dict[str, Float[Array, ""]]


class DeviceData(NamedTuple):
    """What stays on the device for the whole run. N images, K kinds of text, C classes."""

    class_tokens: Int[Array, "C M"]  # class-descriptions, cropped to the longest
    description_tokens: Int[Array, "NK L"]  # row n · K + k is the k-th text of image n
    present: Bool[Array, "N K"]  # False where that text is missing
    targets: Targets  # of all N images
    pixels: UInt8[Array, "N H W 3"] | None  # None where the image cache is streamed
    sizes: Int[Array, "N 2"] | None  # None where nothing is augmented, too
    frozen: Float[Array, "N D"] | None = None  # image features of the pre-trained model


class Batch(NamedTuple):
    """What the host sends for a step; see `lattec_jax.training.batches.HostBatch`."""

    images: Int[Array, " B"]
    text_indices: tuple[Int[Array, " n"], ...]
    text_positions: Int[Array, " BK"]
    text_images: Int[Array, "B K"]
    ends_epoch: Bool[Array, ""]
    pixels: UInt8[Array, "B H W 3"] | None = None  # only where the image cache is streamed
    sizes: Int[Array, "B 2"] | None = None


class StepSettings(NamedTuple):
    """Static settings of a step."""

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augmentation: Augmentation | None  # None: the pixels are those of evaluation
    num_microbatches: int = 1  # that a batch is encoded in (`lattec_jax.training.microbatches`)


def unique_classes(
    labels: Int[Array, "J B"], classes: int
) -> tuple[Int[Array, " U"], Int[Array, "J B"]]:
    """The classes whose descriptions a batch needs, and where each label's class stands in them.

    A batch names at most U = min(C, J · B) classes. Where that is all of them, they are taken in
    order; otherwise unused places are filled with class 0.
    """
    if classes <= labels.size:
        return jnp.arange(classes), labels
    found, inverse = jnp.unique(
        labels.reshape(-1), return_inverse=True, size=labels.size, fill_value=0
    )
    return found, inverse.reshape(labels.shape)


def encode_images(
    encoder: StepEncoder,
    key: Key[Array, ""],
    device_data: DeviceData,
    batch: Batch,
    settings: StepSettings,
) -> Float[Array, "B D"]:
    """Features of augmented crops, which are made piece by piece from the draws of the batch; or of
    the pixels as they are."""
    resident, draws = batch.pixels is None, None
    if settings.augmentation is not None:
        sizes = device_data.sizes[batch.images] if resident else batch.sizes
        draws = draw(key, sizes, settings.augmentation)
    mean, std = jnp.asarray(settings.mean), jnp.asarray(settings.std)

    def load(piece: tuple[jax.Array, Draws | None]) -> Float[Array, "P H W 3"]:
        pixels = device_data.pixels[piece[0]] if resident else piece[0]
        pixels = jax.lax.with_sharding_constraint(pixels, sharding.over_batch(encoder.mesh))
        if piece[1] is None:
            return (pixels / 255 - mean) / std
        return (apply_draws(pixels, piece[1], settings.image_size) - mean) / std

    return encoder.images((batch.images if resident else batch.pixels, draws), load)


def encode_texts(
    encoder: StepEncoder, groups: list[Int[Array, "n L"]]
) -> list[Float[Array, "n D"]]:
    """Encode token matrices, those of one length as one."""
    by_length: dict[int, list[int]] = {}
    for index, tokens in enumerate(groups):
        by_length.setdefault(tokens.shape[1], []).append(index)
    joined = [jnp.concatenate([groups[i] for i in same]) for same in by_length.values()]
    encoded: dict[int, jax.Array] = {}
    for same, features in zip(by_length.values(), encoder.texts(joined), strict=True):
        ends = np.cumsum([groups[i].shape[0] for i in same])
        encoded |= dict(zip(same, jnp.split(features, ends[:-1]), strict=True))
    return [encoded[i] for i in range(len(groups))]


def gather_features(
    encoder: StepEncoder,
    method: Method,
    method_state: object,
    image_features: Float[Array, "B D"],
    device_data: DeviceData,
    batch: Batch,
    text_lengths: tuple[int, ...],
) -> tuple[Features, Int[Array, "J B"]]:
    """All features that a method's loss needs, and the labels it chose."""
    class_weights = method.class_weights(
        method_state, lambda: encoder.texts([device_data.class_tokens])[0]
    )
    targets = Targets(*(None if t is None else t[batch.images] for t in device_data.targets))
    labels = method.labels(
        jax.lax.stop_gradient(image_features),
        jax.lax.stop_gradient(class_weights),
        targets._replace(rows=batch.images),
        method_state,
    )
    count = device_data.class_tokens.shape[0]
    if method.encodes_all_classes:
        classes, places = jnp.arange(count), labels
    else:
        classes, places = unique_classes(labels, count)
    groups = [device_data.class_tokens[classes]]
    for rows, length in zip(batch.text_indices, text_lengths, strict=True):
        groups.append(device_data.description_tokens[rows, :length])
    class_features, *texts = encode_texts(encoder, groups)
    batch_size, kinds = batch.text_images.shape
    dimension = image_features.shape[1]
    if texts:
        # [B · K, D] in the order of the groups -> [B, K, D]
        descriptions = jnp.concatenate(texts)[batch.text_positions]
        descriptions = descriptions.reshape(batch_size, kinds, dimension)
    else:
        descriptions = jnp.zeros((batch_size, 0, dimension), image_features.dtype)
    features = Features(
        images=image_features,
        class_texts=class_features[places],
        descriptions=descriptions,
        present=device_data.present[batch.text_images, jnp.arange(kinds)],
        logit_scale=encoder.logit_scale,
        classes=class_features if method.encodes_all_classes else None,
        frozen=None if device_data.frozen is None else device_data.frozen[batch.images],
    )
    return features, labels


def spread(predictions: Int[Array, " B"], classes: int) -> Metrics:
    """How a batch's predictions spread over the classes: their entropy divided by that of even
    shares, the largest share and the class that has it (`lattec_jax.reporting.health` watches
    them)."""
    fractions = jnp.bincount(predictions, length=classes) / predictions.size
    return {
        "batch_class_entropy": jax.scipy.special.entr(fractions).sum() / math.log(classes),
        "batch_largest_fraction": fractions.max(),
        "batch_largest_class": fractions.argmax().astype(jnp.float32),
    }


def make_train_step(
    definition: nnx.GraphDef,
    method: Method,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    settings: StepSettings,
    mesh: Mesh,
) -> Callable[[TrainState, DeviceData, Batch, tuple[int, ...]], tuple[TrainState, Metrics]]:
    """Compile a step for one run.

    Args:
        definition: of the model.
        method: says what is learned.
        optimizer: one that counts its steps (`count` in its state), as those with a schedule do.
        schedule: the optimizer's, for the log.
        settings: of the step.
        mesh: the devices.

    Returns:
        A function of the state (which it consumes), the tables, the batch and the static lengths
        of its text groups.
    """

    def loss(
        trained: Params, state: TrainState, device_data: DeviceData, batch: Batch,
        text_lengths: tuple[int, ...],
    ) -> tuple[jax.Array, tuple]:  # fmt: skip
        params = {**state.params, **trained}
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        encoder = StepEncoder(definition, params, mesh, settings.num_microbatches)
        images = encode_images(encoder, key, device_data, batch, settings)
        features, labels = gather_features(
            encoder, method, state.method, images, device_data, batch, text_lengths
        )
        value, aux = method.loss(features, labels, state.method)
        return value, (labels, aux)

    def step(
        state: TrainState, device_data: DeviceData, batch: Batch, text_lengths: tuple[int, ...]
    ) -> tuple[TrainState, Metrics]:
        trained = trainable(state.params, method.trainable)
        # Accelerators otherwise multiply float32 in fewer bits; bfloat16 towers are not touched.
        with jax.default_matmul_precision("highest"):
            (value, (labels, aux)), gradient = jax.value_and_grad(loss, has_aux=True)(
                trained, state, device_data, batch, text_lengths
            )
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, trained)
        moved = optax.apply_updates(trained, updates), optimizer_state
        if (learns := method.should_update(labels)) is not True:
            rest = (trained, state.optimizer)
            moved = jax.tree.map(lambda new, old: jnp.where(learns, new, old), moved, rest)
        params = clamp_logit_scale({**state.params, **moved[0]})
        method_state, metrics = method.update(state.method, labels, aux, batch.ends_epoch)
        metrics |= {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradient),
            "logit_scale": jnp.exp(params["logit_scale"]),
            "learning_rate": schedule(optax.tree.get_all_with_path(state.optimizer, "count")[0][1]),
        }
        if (predicted := method.predictions(labels)) is not None:
            metrics |= spread(predicted, device_data.class_tokens.shape[0])
            frozen = device_data.targets.zero_shot[batch.images]
            metrics["agreement_with_frozen"] = jnp.mean(predicted == frozen)
        new = TrainState(state.step + 1, state.seed, params, moved[1], method_state)
        # Keep every array where it lies: otherwise the compiler may choose another place.
        return jax.lax.with_sharding_constraint(new, state_shardings(new, mesh)), metrics

    options = compilation_cache.options(mesh)
    return jax.jit(step, donate_argnums=0, static_argnums=3, compiler_options=options)
