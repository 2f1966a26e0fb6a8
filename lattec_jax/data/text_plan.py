"""Which texts of a batch are encoded at which length, so that a long one is not paid for by all.

Attention and feed-forward layers cost by the token, and only the tokens up to the end-of-text one
matter in a causal tower. A plan splits the texts of every batch into a few groups of fixed length
and fixed size: the longest texts go to the longest group, and so on down. Sizes are the same for
all batches, so one compilation serves a run; the rare batch with more long texts than its group
holds falls back to a plan that encodes everything at full length. The features are the same either
way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

BUCKETS = (16, 24, 32, 40, 48)  # beside the context length
DEVIATIONS = 4.0  # how many standard deviations of a count a group has room for


@dataclasses.dataclass(frozen=True)
class TextPlan:
    """Groups in descending length: `sizes[i]` texts are encoded at `lengths[i]` tokens."""

    lengths: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens encoded per batch."""
        return sum(n * length for n, length in zip(self.sizes, self.lengths, strict=True))

    def assign(self, lengths: np.ndarray) -> tuple[list[np.ndarray], np.ndarray] | None:
        """Split the texts of a batch into the groups.

        Args:
            lengths: `[M]` tokens that each text needs; M is the sum of the sizes.

        Returns:
            The positions of each group's texts, and `[M]` where each text then stands in the
            concatenation of the groups; None where a group does not hold its texts.
        """
        if not self.sizes:
            return [], np.zeros(0, np.int32)
        order = np.argsort(-lengths, kind="stable")
        groups = np.split(order, np.cumsum(self.sizes)[:-1])
        for positions, room in zip(groups, self.lengths, strict=True):
            if len(positions) and lengths[positions[0]] > room:
                return None
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        return [positions.astype(np.int32) for positions in groups], place


def round_up(value: float, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return int(-(-value // multiple) * multiple)


def bucket_length(length: int, context_length: int) -> int:
    """The smallest group length that holds `length` tokens."""
    return next((b for b in BUCKETS if length <= b < context_length), context_length)


def full_plan(texts: int, context_length: int) -> TextPlan:
    """All texts at full length; no group at all where there are no texts."""
    return TextPlan((context_length,), (texts,)) if texts else TextPlan((), ())


def make_plan(lengths: np.ndarray, texts: int, context_length: int, multiple: int = 1) -> TextPlan:
    """Choose group sizes for random batches of a collection of texts.

    Args:
        lengths: `[N]` tokens that each text of the collection needs.
        texts: how many are drawn for a batch; a multiple of `multiple`.
        context_length: length of the longest group.
        multiple: group sizes are multiples of this (the devices that share a batch).
    """
    if len(lengths) == 0 or texts == 0:
        return full_plan(texts, context_length)
    bounds: Sequence[int] = [b for b in BUCKETS if b < context_length]
    group_lengths, sizes, placed = [], [], 0
    # From the longest group down: room for all texts that need more than the next bound.
    for bound, length in zip(
        reversed([0, *bounds]), reversed([*bounds, context_length]), strict=True
    ):
        share = float(np.mean(lengths > bound))
        spread = DEVIATIONS * np.sqrt(texts * share * (1 - share))
        needed = texts if bound == 0 else min(texts, round_up(texts * share + spread, multiple))
        if needed > placed:
            group_lengths.append(length)
            sizes.append(needed - placed)
            placed = needed
    return TextPlan(tuple(group_lengths), tuple(sizes))
