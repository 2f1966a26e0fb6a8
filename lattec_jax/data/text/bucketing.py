"""Length bucketing: encode short texts at a short length, with one compilation for a run.

The cost of the text tower grows with the number of tokens, and in a causal tower the tokens after
the end of a text have no effect. So the texts of a batch are sorted into a few groups, each cropped
to one length: the longest texts go to the longest group, and so on. Number, lengths and sizes of
the groups are the same for all batches of a run (`BucketPlan`), which are counted before it begins.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

BUCKETS = (16, 24, 32, 40, 48)  # lengths, besides the context length
# A group has capacity for so many standard deviations above the mean number of its texts. With this
# margin most runs on the same texts, but with other seeds, have the same plan and the same compiled
# program.
DEVIATIONS = 4.0


@dataclasses.dataclass(frozen=True)
class BucketPlan:
    """Groups of texts in descending length: group i has `sizes[i]` texts of `lengths[i]` tokens."""

    lengths: tuple[int, ...]
    sizes: tuple[int, ...]

    def assign(self, lengths: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Assign the texts of a batch to the groups.

        Args:
            lengths: `[M]` tokens that each text needs; M is the sum of the sizes.

        Returns:
            For each group the indices of its texts, and the `[M]` position of each text in the
            concatenation of the groups.
        """
        if not self.sizes:
            return [], np.zeros(0, np.int32)
        order = np.argsort(-lengths, kind="stable")
        groups = np.split(order, np.cumsum(self.sizes)[:-1])
        for indices, max_length in zip(groups, self.lengths, strict=True):
            if len(indices) and lengths[indices[0]] > max_length:
                raise ValueError(
                    f"expected texts of at most {max_length} tokens in a group, found one of "
                    f"{lengths[indices[0]]}; the plan was made for other batches"
                )
        positions = np.empty(len(order), np.int32)  # the inverse of the permutation `order`
        positions[order] = np.arange(len(order), dtype=np.int32)
        return [indices.astype(np.int32) for indices in groups], positions


def round_up(value: float, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return int(-(-value // multiple) * multiple)


def bucket_length(length: int, context_length: int) -> int:
    """Return the length of the shortest bucket for `length` tokens."""
    return next((b for b in BUCKETS if length <= b < context_length), context_length)


def bucket_bounds(context_length: int) -> np.ndarray:
    """Return the exclusive lower bound of each bucket's lengths, the longest bucket first."""
    return np.array([0, *(b for b in BUCKETS if b < context_length)][::-1])


def make_bucket_plan(
    lengths: np.ndarray,
    max_counts: np.ndarray,
    batch_texts: int,
    context_length: int,
    multiple: int = 1,
) -> BucketPlan:
    """Choose group sizes for all batches of a run.

    Args:
        lengths: `[N, K]` tokens of each text of the data set.
        max_counts: for each of `bucket_bounds` the largest number of longer texts in a batch.
        batch_texts: number of texts in a batch; a multiple of `multiple`.
        context_length: length of the longest group.
        multiple: of which group sizes are multiples (the number of devices).
    """
    if batch_texts == 0:
        return BucketPlan((), ())
    bounds = bucket_bounds(context_length)
    group_lengths, sizes, assigned = [], [], 0
    # Groups are filled from the longest. This one and the longer ones together need capacity for
    # all texts longer than the bound: the binomial mean plus a margin, or the largest count.
    for bound, length, max_count in zip(
        bounds, [context_length, *bounds[:-1]], max_counts, strict=True
    ):
        fraction = float(np.mean(lengths > bound))
        margin = DEVIATIONS * np.sqrt(batch_texts * fraction * (1 - fraction))
        capacity = round_up(max(batch_texts * fraction + margin, max_count), multiple)
        needed = batch_texts if bound == 0 else min(batch_texts, capacity)
        if needed > assigned:
            group_lengths.append(int(length))
            sizes.append(needed - assigned)
            assigned = needed
    return BucketPlan(tuple(group_lengths), tuple(sizes))


class TextTower(Protocol):
    """The settings that determine on which tokens a text's feature depends (`TextConfig`)."""

    @property
    def causal(self) -> bool: ...
    @property
    def pool(self) -> str: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def context_length(self) -> int: ...


def text_lengths(tokens: np.ndarray, config: TextTower) -> np.ndarray:
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
