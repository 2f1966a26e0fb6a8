"""Which images and texts make up the batch of a step: host side, a function of seed and step.

An epoch is a fresh permutation of the training images. Its incomplete last batch is dropped, or
filled, and more batches added, with images of further permutations (`steps_per_epoch`). Any step
can be rebuilt on its own, so a resumed run sees the batches that the interrupted one would have
seen.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache

import numpy as np

from lattec_jax.data.text.bucketing import BucketPlan, bucket_bounds, make_bucket_plan


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """One batch as the step needs it.

    Attributes:
        images: `[B]` rows of the training cache.
        text_indices: for each group of the text plan, which rows of the `[N · K, L]` table of
            description tokens it encodes.
        text_positions: `[B · K]` where the text of each image and kind then stands in the
            concatenated groups.
        text_images: `[B, K]` whose description each image uses: its own unless redrawn.
        text_lengths: tokens of each group of the plan.
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
        count: N, the training images.
        batch_size: B, at most N.
        seed: of the run.
        steps: of the run.
        lengths: `[N, K]` tokens that each description needs.
        context_length: the longest text.
        multiple: which the sizes of groups of texts are multiples of (the devices).
        redraw: kinds whose text is drawn anew at every step from all images with the same
            zero-shot label (the released code's group-descriptions).
        groups: `[N]` those labels; only read where something is redrawn.
        epoch_batch_multiple: of `steps_per_epoch`.
        plan: how the texts of every batch of the run are grouped by length. All are counted when
            this is made, some microseconds a step.
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
        object.__setattr__(self, "plan", self._count())

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return steps_per_epoch(self.count, self.batch_size, self.epoch_batch_multiple)

    def at(self, step: int) -> HostBatch:
        """The batch of `step`, counted from 0."""
        images = self._images(step)
        text_images, needed = self._texts(step, images)
        positions, places = self.plan.assign(needed)
        kinds = self.lengths.shape[1]
        rows = (text_images * kinds + np.arange(kinds)).reshape(-1).astype(np.int32)
        return HostBatch(
            images=images,
            text_indices=tuple(rows[group] for group in positions),
            text_positions=places,
            text_images=text_images,
            text_lengths=self.plan.lengths,
            ends_epoch=(step + 1) % self.steps_per_epoch == 0,
        )

    def _images(self, step: int) -> np.ndarray:
        """`[B]` rows of the training images."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.count, self.seed, epoch, self.steps_per_epoch * self.batch_size)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def _texts(self, step: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`[B, K]` whose description each image uses, and `[B · K]` the tokens that they need."""
        kinds = self.lengths.shape[1]
        text_images = np.repeat(images[:, None], kinds, axis=1)
        if self.redraw:
            random = np.random.default_rng([self.seed, 1, step])
            for kind in self.redraw:
                text_images[:, kind] = self._same_label(images, random)
        return text_images, self.lengths[text_images, np.arange(kinds)].reshape(-1)

    def _count(self) -> BucketPlan:
        """The plan with room for the most texts of each length that a batch of the run has."""
        bounds = bucket_bounds(self.context_length)
        most = np.zeros(len(bounds), int)
        for step in range(self.steps if self.lengths.size else 0):
            _, needed = self._texts(step, self._images(step))
            up_to = np.cumsum(np.bincount(needed, minlength=self.context_length + 1))
            most = np.maximum(most, len(needed) - up_to[bounds])
        texts = self.batch_size * self.lengths.shape[1]
        return make_bucket_plan(self.lengths, most, texts, self.context_length, self.multiple)

    def _same_label(self, images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """For each of `images` one drawn evenly from all that share its group: `[B]`."""
        order, starts, sizes = self._by_group
        mine = self.groups[images]
        return order[starts[mine] + random.integers(0, sizes[mine])]

    @cached_property
    def _by_group(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images sorted by group, where each group starts, and its size."""
        sizes = np.bincount(self.groups)
        order = np.argsort(self.groups, kind="stable").astype(np.int32)
        return order, np.cumsum(sizes) - sizes, sizes

    def iterate(self, start: int, stop: int) -> Iterator[HostBatch]:
        """The batches of the steps from `start` to `stop` (not included)."""
        return (self.at(step) for step in range(start, stop))


def steps_per_epoch(images: int, batch_size: int, multiple: int) -> int:
    """The number of batches in an epoch.

    Args:
        images: of the training set.
        batch_size: at most `images`.
        multiple: `config.train.epoch_batch_multiple`. 0: only whole batches, the incomplete last
            one is dropped. Otherwise enough batches for all images, rounded up to this multiple.
    """
    if multiple == 0:
        return images // batch_size
    batches = -(-images // batch_size)
    return -(-batches // multiple) * multiple


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int, length: int) -> np.ndarray:
    """`[length]` images of an epoch: a permutation, cut off or continued by further ones."""
    rng = np.random.default_rng([seed, 0, epoch])
    permutations = [rng.permutation(count) for _ in range(-(-length // count))]
    return np.concatenate(permutations)[:length].astype(np.int32)


def prefetch(items: Iterator, ahead: int = 2) -> Iterator:
    """Draw from `items` in one thread, up to `ahead` items before they are needed.

    An exception of the producer is raised where its item would have been yielded.
    """
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        waiting = deque(pool.submit(next, items, end) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
