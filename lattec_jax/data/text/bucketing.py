"""Which texts of a batch are encoded at which length, so that a long one is not paid for by all.

Attention and feed-forward layers cost by the token, and only the tokens up to the end-of-text one
matter in a causal tower. A plan splits the texts of every batch into a few groups of fixed length
and fixed size: the longest texts go to the longest group, and so on down. Sizes are the same for
all batches of a run, which are counted before it begins, so that one compilation serves it.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

BUCKETS = (16, 24, 32, 40, 48)  # beside the context length
# How many standard deviations of a count a group has room for, whatever the batches of a run are:
# most runs of one collection, whose seeds differ, thus have the same groups and the same program.
DEVIATIONS = 4.0


@dataclasses.dataclass(frozen=True)
class BucketPlan:
    """Groups in descending length: `sizes[i]` texts are encoded at `lengths[i]` tokens."""

    lengths: tuple[int, ...]
    sizes: tuple[int, ...]

    def assign(self, lengths: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Split the texts of a batch into the groups.

        Args:
            lengths: `[M]` tokens that each text needs; M is the sum of the sizes.

        Returns:
            The positions of each group's texts, and `[M]` where each text then stands in the
            concatenation of the groups.

        Raises:
            ValueError: a group does not hold its texts: the plan is of other batches.
        """
        if not self.sizes:
            return [], np.zeros(0, np.int32)
        order = np.argsort(-lengths, kind="stable")
        groups = np.split(order, np.cumsum(self.sizes)[:-1])
        for positions, room in zip(groups, self.lengths, strict=True):
            if len(positions) and lengths[positions[0]] > room:
                raise ValueError(
                    f"expected texts of at most {room} tokens in a group, found one of "
                    f"{lengths[positions[0]]}; the plan is of other batches"
                )
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        return [positions.astype(np.int32) for positions in groups], place


def round_up(value: float, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return int(-(-value // multiple) * multiple)


def bucket_length(length: int, context_length: int) -> int:
    """The smallest group length that holds `length` tokens."""
    return next((b for b in BUCKETS if length <= b < context_length), context_length)


def bucket_bounds(context_length: int) -> np.ndarray:
    """What the texts of each group are longer than, from the longest group down."""
    return np.array([0, *(b for b in BUCKETS if b < context_length)][::-1])


def make_bucket_plan(
    lengths: np.ndarray, most: np.ndarray, texts: int, context_length: int, multiple: int = 1
) -> BucketPlan:
    """Choose group sizes for batches of a collection of texts.

    Args:
        lengths: `[N, K]` tokens that each text of the collection needs.
        most: for each of `bucket_bounds` how many longer texts a batch has at most.
        texts: in a batch; a multiple of `multiple`.
        context_length: length of the longest group.
        multiple: group sizes are multiples of this (the devices that share a batch).
    """
    if texts == 0:
        return BucketPlan((), ())
    bounds = bucket_bounds(context_length)
    group_lengths, sizes, placed = [], [], 0
    # From the longest group down: room for all texts that need more than the next bound.
    for bound, length, held in zip(bounds, [context_length, *bounds[:-1]], most, strict=True):
        fraction = float(np.mean(lengths > bound))
        spread = DEVIATIONS * np.sqrt(texts * fraction * (1 - fraction))
        room = round_up(max(texts * fraction + spread, held), multiple)
        needed = texts if bound == 0 else min(texts, room)
        if needed > placed:
            group_lengths.append(int(length))
            sizes.append(needed - placed)
            placed = needed
    return BucketPlan(tuple(group_lengths), tuple(sizes))


class TextTower(Protocol):
    """What of a text tower's configuration decides how much of a text it depends on."""

    causal: bool
    pool: str
    eos_id: int
    context_length: int


def text_lengths(tokens: np.ndarray, config: TextTower) -> np.ndarray:
    """How many leading tokens of each text its feature depends on.

    With a causal tower read out at the end-of-text token, nothing after that token matters,
    whatever the padding: the token that is looked for is the first of its kind. Other towers need
    all of them: without a causal mask every token sees the padding, and "last" reads it.

    Args:
        tokens: `[N, L]` token ids.

    Returns:
        `[N]` int32 lengths between 1 and L.
    """
    if config.causal and config.pool == "argmax":
        return (np.argmax(tokens, axis=1) + 1).astype(np.int32)
    if config.causal and config.pool == "eos":
        return (np.argmax(tokens == config.eos_id, axis=1) + 1).astype(np.int32)
    return np.full(tokens.shape[0], tokens.shape[1], np.int32)
