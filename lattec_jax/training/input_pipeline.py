"""Input pipeline: arrays that stay on the devices, and batches of indices into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lattec_jax.data.images.image_cache import ImageCache
from lattec_jax.data.prefetch import prefetch
from lattec_jax.data.text.bucketing import text_lengths
from lattec_jax.methods.base import Method, Targets
from lattec_jax.runtime import distributed, sharding
from lattec_jax.runtime.device_memory import device_memory
from lattec_jax.runtime.errors import DataError
from lattec_jax.training.batches import Batches, HostBatch
from lattec_jax.training.prepare import Inputs
from lattec_jax.training.step import Batch, DeviceData

DEVICE_MEMORY_FRACTION = 0.4  # maximum size of an image cache that is kept on the device
PREFETCHED_BATCHES = 2


def choose_batch_size(config: ConfigDict, images: int, mesh: Mesh) -> int:
    """Return the configured batch size, or a smaller one if there are fewer images.

    Raises ConfigError if it is not a multiple of the number of devices, DataError if there are too
    few images for any batch.
    """
    wanted = config.train.batch_size
    if images >= wanted:
        sharding.check_batch(wanted, mesh)
        return wanted
    size = images // mesh.size * mesh.size
    if size < 2:
        raise DataError(
            f"expected at least {max(2, mesh.size)} training images, found {images}; add images"
        )
    print(f"batch of {size} instead of {wanted}: there are only {images} training images")
    return size


def make_batches(
    config: ConfigDict, inputs: Inputs, method: Method, batch_size: int, steps: int, mesh: Mesh
) -> tuple[Batches, np.ndarray, np.ndarray]:
    """Return the batches of a run, and the texts that they index: `[N · K, L]` tokens, entry
    n · K + k being the k-th text of image n, and `[N, K]` False where that text is missing."""
    text_config = inputs.weights.config.text
    count = len(inputs.train.ids)
    texts = inputs.descriptions.texts if inputs.descriptions else {}
    kinds = method.description_kinds if inputs.descriptions else ()
    ordered = [texts[kind][n] for n in range(count) for kind in kinds]
    tokens = inputs.weights.tokenizer([text or "" for text in ordered])
    lengths = text_lengths(tokens, text_config)
    batches = Batches(
        num_images=count,
        batch_size=batch_size,
        seed=config.seed,
        steps=steps,
        lengths=lengths.reshape(count, len(kinds)),
        context_length=text_config.context_length,
        size_multiple=mesh.size,
        redraw=tuple(i for i, kind in enumerate(kinds) if kind in method.redrawn_kinds),
        labels=inputs.pseudo_labels.labels,
        epoch_batch_multiple=config.train.epoch_batch_multiple,
    )
    present = np.array([text is not None for text in ordered], bool).reshape(count, len(kinds))
    return batches, tokens, present


def make_device_data(
    config: ConfigDict,
    inputs: Inputs,
    method: Method,
    description_tokens: np.ndarray,
    present: np.ndarray,
    pretrained_features: np.ndarray | None,
    mesh: Mesh,
) -> DeviceData:
    """Place on every device what stays there for the whole run."""
    cache = inputs.train.train_cache
    on_device = method.trains and cache_on_device(config, cache)
    # True labels are on the device only for a method that declares that it needs them.
    true = inputs.train.labels if "labels" in method.requires else None

    def replicate(array: np.ndarray) -> jax.Array:
        return sharding.to_devices(np.asarray(array), sharding.replicated(mesh))

    def replicate_optional(array: np.ndarray | None) -> jax.Array | None:
        return None if array is None else replicate(array)

    return DeviceData(
        class_tokens=replicate(inputs.prompts.first),
        description_tokens=replicate(description_tokens),
        present=replicate(present),
        targets=Targets(replicate(inputs.pseudo_labels.labels), replicate_optional(true)),
        pixels=replicate(cache.pixels) if on_device else None,
        sizes=replicate_optional(cache.sizes) if on_device else None,
        pretrained_features=replicate_optional(pretrained_features),
    )


def cache_on_device(config: ConfigDict, cache: ImageCache) -> bool:
    """Whether the image cache is kept in device memory, rather than streamed from its memory map.
    All processes agree on it."""
    placement = config.image_cache.placement
    if placement != "auto":
        return placement == "device"
    fits = cache.pixels.nbytes <= DEVICE_MEMORY_FRACTION * device_memory()
    return distributed.all_agree(fits)


def device_batches(
    batches: Batches,
    cache: ImageCache,
    device_data: DeviceData,
    start: int,
    stop: int,
    mesh: Mesh,
    is_logged: Callable[[int], bool] = lambda step: True,
) -> Iterator[tuple[HostBatch, Batch]]:
    """Iterate over the batches of the steps from `start` to `stop` (not included), prefetched to
    the devices. If the image cache is streamed they have pixels, of which each process reads those
    of its own devices. `is_logged` takes the number of a step, from 1."""
    split, replicated = sharding.over_batch(mesh), sharding.replicated(mesh)
    count = batches.batch_size
    local = sharding.process_local_indices(mesh, count)

    def load(step: int) -> tuple[HostBatch, Batch]:
        host = batches.at(step)
        pixels = sizes = None
        if device_data.pixels is None:
            images = host.images[local]
            pixels = sharding.place_process_local(mesh, count, cache.read(images))
            if cache.sizes is not None:
                sizes = sharding.place_process_local(mesh, count, cache.sizes[images])
        batch = Batch(
            images=sharding.to_devices(host.images, split),
            text_indices=tuple(
                sharding.to_devices(indices, split) for indices in host.text_indices
            ),
            text_positions=sharding.to_devices(host.text_positions, split),
            text_images=sharding.to_devices(host.text_images, split),
            ends_epoch=sharding.to_devices(np.asarray(host.ends_epoch), replicated),
            pixels=pixels,
            sizes=sizes,
            is_logged=sharding.to_devices(np.asarray(is_logged(step + 1)), replicated),
        )
        return host, batch

    # One thread: all processes must place their arrays in the same order.
    return prefetch(load, range(start, stop), threads=1, ahead=PREFETCHED_BATCHES)
