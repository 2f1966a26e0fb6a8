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


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """One batch as the step needs it.

    Attributes:
        images: `[B]` indices into the training images.
        text_indices: for each bucket, the indices of its texts in the `[N · K, L]` description
            tokens.
        text_positions: `[B · K]` position of the text of each image and kind in the concatenated
            buckets.
        text_images: `[B, K]` index of the image whose description is used: the image itself unless
            the kind is redrawn.
        text_lengths: number of tokens of each bucket.
        ends_epoch: whether this is the last step of an epoch.
    """

    images: np.ndarray
    text_indices: tuple[np.ndarray, ...]
    text_positions: np.ndarray
    text_images: np.ndarray
    text_lengths: tuple[int, ...]
    ends_epoch: bool


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of a run.

    Attributes:
        count: N, the number of training images.
        batch_size: B, at most N.
        lengths: `[N, K]` number of tokens that each description needs.
        context_length: the maximum number of tokens.
        multiple: bucket sizes are multiples of this (the number of devices).
        redraw: kinds whose text is drawn at every step from all images with the same zero-shot
            label (group-descriptions of the released code).
        groups: `[N]` these labels; only used with `redraw`.
        epoch_batch_multiple: see `steps_per_epoch`.
        plan: how the texts of every batch of the run are bucketed by length. To make it, all
            batches of the run are counted, which takes some microseconds a step.
    """

    count: int
    batch_size: int
    seed: int
    steps: int
    lengths: np.ndarray
    context_length: int
    multiple: int = 1
    redraw: tuple[int, ...] = ()
    groups: np.ndarray | None = None
    epoch_batch_multiple: int = 0
    plan: BucketPlan = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", self._make_plan())

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return steps_per_epoch(self.count, self.batch_size, self.epoch_batch_multiple)

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
            text_lengths=self.plan.lengths,
            ends_epoch=(step + 1) % self.steps_per_epoch == 0,
        )

    def _images(self, step: int) -> np.ndarray:
        """`[B]` indices into the training images."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.count, self.seed, epoch, self.steps_per_epoch * self.batch_size)
        start = step_in_epoch * self.batch_size
        return order[start : start + self.batch_size]

    def _texts(self, step: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`[B, K]` index of the image whose description is used, and `[B · K]` numbers of tokens
        that these descriptions need."""
        kinds = self.lengths.shape[1]
        text_images = np.repeat(images[:, None], kinds, axis=1)
        if self.redraw:
            random = np.random.default_rng([self.seed, 1, step])
            for kind in self.redraw:
                text_images[:, kind] = self._same_label(images, random)
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
        return make_bucket_plan(self.lengths, max_counts, texts, self.context_length, self.multiple)

    def _same_label(self, images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """For each of the `[B]` images, draw one uniformly from all images of its group."""
        order, starts, sizes = self._by_group
        groups = self._groups[images]
        return order[starts[groups] + random.integers(0, sizes[groups])]

    @property
    def _groups(self) -> np.ndarray:
        if self.groups is None:
            raise ValueError("`groups` is needed to redraw texts")
        return self.groups

    @cached_property
    def _by_group(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images sorted by group, the start of each group, and its size."""
        sizes = np.bincount(self._groups)
        order = np.argsort(self._groups, kind="stable").astype(np.int32)
        return order, np.cumsum(sizes) - sizes, sizes


def steps_per_epoch(images: int, batch_size: int, multiple: int) -> int:
    """Return the number of batches in an epoch.

    Args:
        images: number of training images.
        batch_size: at most `images`.
        multiple: `config.train.epoch_batch_multiple`. 0: the incomplete last batch is dropped.
            Otherwise enough batches for all images, rounded up to this multiple.
    """
    if multiple == 0:
        return images // batch_size
    batches = -(-images // batch_size)
    return -(-batches // multiple) * multiple


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int, length: int) -> np.ndarray:
    """`[length]` images of an epoch: a permutation, truncated or continued by further ones."""
    rng = np.random.default_rng([seed, 0, epoch])
    permutations = [rng.permutation(count) for _ in range(-(-length // count))]
    return np.concatenate(permutations)[:length].astype(np.int32)
