"""The images and texts of each batch, computed on the host as a function of seed and step.

An epoch is a new permutation of the training images. Its incomplete last batch is dropped, or it is
filled, and batches are added, with images of further permutations (`steps_per_epoch`). The batch of
any step can be computed by itself, so that a resumed run sees the same batches as an uninterrupted
one.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property, lru_cache

import numpy as np

from lattec_jax.data.text.bucketing import BucketPlan, bucket_bounds, make_bucket_plan
from lattec_jax.methods.base import required


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """One batch as the step needs it.

    Attributes:
        text_indices: for each bucket, the indices of its texts in the `[N · K, L]` description
            tokens.
        text_positions: `[B · K]` position of the text of each image and kind in the concatenated
            buckets.
        text_images: `[B, K]` index of the image whose description is used: the image itself unless
            the kind is redrawn.
    """

    images: np.ndarray  # [B] indices into the training images
    text_indices: tuple[np.ndarray, ...]
    text_positions: np.ndarray
    text_images: np.ndarray
    bucket_lengths: tuple[int, ...]  # number of tokens of each bucket
    ends_epoch: bool  # whether this is the last step of an epoch


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of a run.

    Attributes:
        redraw: kinds whose text is drawn at every step from all images with the same zero-shot
            label (group-descriptions of the released code).
        plan: how the texts of every batch of the run are bucketed by length. It is computed from
            the text lengths of all batches, which takes some microseconds a step.
    """

    num_images: int  # N, in the training set
    batch_size: int  # B, at most N
    seed: int
    steps: int
    lengths: np.ndarray  # [N, K] number of tokens that each description needs
    context_length: int
    size_multiple: int = 1  # number of devices; every bucket size is a multiple of it
    redraw: tuple[int, ...] = ()
    labels: np.ndarray | None = None  # [N] zero-shot labels; only used with `redraw`
    epoch_batch_multiple: int = 0  # see `steps_per_epoch`
    plan: BucketPlan = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", self._make_plan())

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return steps_per_epoch(self.num_images, self.batch_size, self.epoch_batch_multiple)

    def at(self, step: int) -> HostBatch:
        """The batch of `step`, counted from 0."""
        images = self._images(step)
        text_images, needed = self._texts(step, images)
        buckets, positions = self.plan.assign(needed)
        kinds = self.lengths.shape[1]
        # [B, K] -> [B · K], the order in which `buckets` counts
        indices = (text_images * kinds + np.arange(kinds)).reshape(-1).astype(np.int32)
        return HostBatch(
            images=images,
            text_indices=tuple(indices[bucket] for bucket in buckets),
            text_positions=positions,
            text_images=text_images,
            bucket_lengths=self.plan.lengths,
            ends_epoch=(step + 1) % self.steps_per_epoch == 0,
        )

    def _images(self, step: int) -> np.ndarray:
        """`[B]` indices into the training images."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order = epoch_order(
            self.num_images, self.seed, epoch, self.steps_per_epoch * self.batch_size
        )
        start = step_in_epoch * self.batch_size
        return order[start : start + self.batch_size]

    def _texts(self, step: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`[B, K]` index of the image whose description is used, and `[B · K]` numbers of tokens
        that these descriptions need."""
        kinds = self.lengths.shape[1]
        text_images = np.repeat(images[:, None], kinds, axis=1)
        if self.redraw:
            random = np.random.default_rng([self.seed, 1, step])
            order, starts, sizes = self._images_by_label
            labels = required(self.labels, "labels")[images]
            for kind in self.redraw:
                # One of all images with the label of each image, drawn uniformly.
                text_images[:, kind] = order[starts[labels] + random.integers(0, sizes[labels])]
        return text_images, self.lengths[text_images, np.arange(kinds)].reshape(-1)

    def _make_plan(self) -> BucketPlan:
        """Bucket sizes that hold the texts of every batch of the run."""
        bounds = bucket_bounds(self.context_length)
        max_counts = np.zeros(len(bounds), int)  # texts of one batch that are longer than a bound
        for step in range(self.steps if self.lengths.size else 0):
            _, needed = self._texts(step, self._images(step))
            up_to = np.cumsum(np.bincount(needed, minlength=self.context_length + 1))
            max_counts = np.maximum(max_counts, len(needed) - up_to[bounds])
        texts = self.batch_size * self.lengths.shape[1]
        return make_bucket_plan(
            self.lengths, max_counts, texts, self.context_length, self.size_multiple
        )

    @cached_property
    def _images_by_label(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images sorted by label, and the start and the number of those of each label."""
        labels = required(self.labels, "labels")
        sizes = np.bincount(labels)
        order = np.argsort(labels, kind="stable").astype(np.int32)
        return order, np.cumsum(sizes) - sizes, sizes


def steps_per_epoch(num_images: int, batch_size: int, multiple: int) -> int:
    """Return the number of batches in an epoch for this number of images.

    With a multiple of 0 (`config.train.epoch_batch_multiple`), the incomplete last batch is
    dropped. Otherwise there are enough batches for all images, rounded up to this multiple.
    """
    if multiple == 0:
        return num_images // batch_size
    batches = -(-num_images // batch_size)
    return -(-batches // multiple) * multiple


@lru_cache(maxsize=2)
def epoch_order(num_images: int, seed: int, epoch: int, length: int) -> np.ndarray:
    """`[length]` images of an epoch: a permutation, truncated or continued by further ones."""
    rng = np.random.default_rng([seed, 0, epoch])
    permutations = [rng.permutation(num_images) for _ in range(-(-length // num_images))]
    return np.concatenate(permutations)[:length].astype(np.int32)
