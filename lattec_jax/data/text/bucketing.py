"""Length bucketing: encode short texts at a short length, with one compilation for a run.

The cost of the text tower grows with the number of tokens, and in a causal tower the tokens after
the end of a text have no effect. The texts of a batch are sorted by length into a few buckets, each
cropped to one length; the longest texts go into the longest bucket. The number, lengths and sizes
of the buckets are the same for every batch of a run (`BucketPlan`), so the step is compiled once.
The plan is computed before training from the lengths of all batches.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

BUCKET_LENGTHS = (16, 24, 32, 40, 48)  # in tokens; the last bucket has the context length
# Capacity above the expected number of texts, in standard deviations of that number. With this
# margin, most runs that differ only in the seed have the same plan, and so the same compiled step.
CAPACITY_MARGIN_STDS = 4.0


@dataclasses.dataclass(frozen=True)
class BucketPlan:
    """Buckets by descending length: bucket i has `sizes[i]` texts of `lengths[i]` tokens."""

    lengths: tuple[int, ...]
    sizes: tuple[int, ...]

    def assign(self, lengths: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Assign the texts of a batch to the buckets.

        Args:
            lengths: `[M]` tokens that each text needs; M is the sum of the sizes.

        Returns:
            For each bucket the indices of its texts, and the `[M]` position of each text in the
            concatenation of the buckets.
        """
        if not self.sizes:
            return [], np.zeros(0, np.int32)
        order = np.argsort(-lengths, kind="stable")
        buckets = np.split(order, np.cumsum(self.sizes)[:-1])
        for indices, max_length in zip(buckets, self.lengths, strict=True):
            if len(indices) and lengths[indices[0]] > max_length:
                raise ValueError(
                    f"expected texts of at most {max_length} tokens in a bucket, found one of "
                    f"{lengths[indices[0]]}; the plan was made for other batches"
                )
        positions = np.empty(len(order), np.int32)  # the inverse of the permutation `order`
        positions[order] = np.arange(len(order), dtype=np.int32)
        return [indices.astype(np.int32) for indices in buckets], positions


def round_up(value: float, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return int(-(-value // multiple) * multiple)


def bucket_length(length: int, context_length: int) -> int:
    """Return the length of the shortest bucket for `length` tokens."""
    return next((b for b in BUCKET_LENGTHS if length <= b < context_length), context_length)


def bucket_bounds(context_length: int) -> np.ndarray:
    """Return the exclusive lower bound of each bucket's lengths, the longest bucket first."""
    return np.array([0, *(b for b in BUCKET_LENGTHS if b < context_length)][::-1])


def make_bucket_plan(
    lengths: np.ndarray,
    max_counts: np.ndarray,
    texts_per_batch: int,
    context_length: int,
    size_multiple: int = 1,
) -> BucketPlan:
    """Choose bucket sizes for all batches of a run.

    Args:
        lengths: `[N, K]` tokens of each text of the data set.
        max_counts: for each of `bucket_bounds`, the number of texts longer than that bound, in the
            batch that has the most of them.
        texts_per_batch: a multiple of `size_multiple`.
        context_length: length of the longest bucket.
        size_multiple: number of devices; every bucket size is a multiple of it.
    """
    if texts_per_batch == 0:
        return BucketPlan((), ())
    bounds = bucket_bounds(context_length)
    bucket_lengths, sizes, assigned = [], [], 0
    # From the longest bucket to the shortest. This bucket and all longer ones together must hold
    # every text longer than `bound`. Capacity: the binomial mean plus a margin, or the maximum
    # count if that is larger.
    for bound, length, max_count in zip(
        bounds, [context_length, *bounds[:-1]], max_counts, strict=True
    ):
        fraction = float(np.mean(lengths > bound))
        margin = CAPACITY_MARGIN_STDS * np.sqrt(texts_per_batch * fraction * (1 - fraction))
        capacity = round_up(max(texts_per_batch * fraction + margin, max_count), size_multiple)
        needed = texts_per_batch if bound == 0 else min(texts_per_batch, capacity)
        if needed > assigned:
            bucket_lengths.append(int(length))
            sizes.append(needed - assigned)
            assigned = needed
    return BucketPlan(tuple(bucket_lengths), tuple(sizes))


class TextTowerConfig(Protocol):
    """The fields of `lattec_jax.models.config.TextConfig` that determine on how many leading tokens
    a text's feature depends. (This package does not import `lattec_jax.models`.)"""

    @property
    def causal(self) -> bool: ...
    @property
    def pool(self) -> str: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def context_length(self) -> int: ...


def text_lengths(tokens: np.ndarray, config: TextTowerConfig) -> np.ndarray:
    """Return the `[N]` numbers of leading tokens on which the features of texts `[N, L]` depend.

    If a causal tower pools the end-of-text token, the tokens after the first such token have no
    effect. Other towers need all L tokens: without a causal mask every token attends to the
    padding, and with pool "last" the padding is pooled.
    """
    if config.causal and config.pool == "argmax":
        return (np.argmax(tokens, axis=1) + 1).astype(np.int32)
    if config.causal and config.pool == "eos":
        return (np.argmax(tokens == config.eos_id, axis=1) + 1).astype(np.int32)
    return np.full(tokens.shape[0], tokens.shape[1], np.int32)
