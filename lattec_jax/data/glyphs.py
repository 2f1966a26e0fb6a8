"""Describe a glyph by its pixels, in words.

It states what can be measured on any light or dark mark on a plain ground: closed loops and where
they are, openings and the side to which they open, bars and uprights, on which side the strokes of
the upper and of the lower half lie, width, symmetry and where the ink is. It knows no class, has no
rule made for a class, and its words contain no number word and no digit.

Each attribute is measured at several thresholds. Where they disagree the attribute is uncertain and
is left out. The description of a group states what most of its images share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

Attributes = dict[str, str]  # attribute -> the words for its value, "" for nothing to say

_SIDE = 40  # pixels of the longer side at which everything is measured
_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)  # fractions of the ink's darkest tone
_AGREE = 0.6  # the share of the thresholds that makes an attribute certain
_MAX_WORDS = 25
# Directions in which a background pixel looks for ink: name -> (axis, whether it looks backwards).
_DIRECTIONS = {"top": (0, True), "bottom": (0, False), "left": (1, True), "right": (1, False)}


def describe_image(image: Image.Image) -> str:
    """What the engine says of a single image, in at most 25 words."""
    return say([attributes(image)])


def say(certain: Sequence[Attributes]) -> str:
    """What more than half of the images share, in at most 25 words."""
    phrases, words = [], 0
    for phrase in _shared(certain, 0.5 * len(certain)).values():
        length = len(phrase.split())
        if phrase and words + length <= _MAX_WORDS:
            phrases.append(phrase)
            words += length
    return ", ".join(phrases) if phrases else "a faint mark"


def attributes(image: Image.Image) -> Attributes:
    """The attributes of one image that most thresholds agree on."""
    ink = _ink(image)
    measured = [_measure(ink >= threshold) for threshold in _THRESHOLDS]
    return _shared(measured, _AGREE * len(measured) - 0.5)


def _shared(measured: Sequence[Attributes], more_than: float) -> Attributes:
    """Each attribute's commonest value, where more than that many of `measured` have it."""
    names = dict.fromkeys(name for found in measured for name in found)
    shared = {}
    for name in names:
        votes = Counter(found[name] for found in measured if name in found)
        value, count = votes.most_common(1)[0]
        if count > more_than:
            shared[name] = value
    return shared


def _ink(image: Image.Image) -> np.ndarray:
    """Ink from 0 (ground) to 1, at the measuring size with an empty margin, `[H, W]`.

    The ground is what most of the image's edge shows.
    """
    scale = _SIDE / max(image.size)
    size = tuple(max(4, round(length * scale)) for length in image.size)
    gray = np.asarray(_gray(image).resize(size, Image.Resampling.BICUBIC), np.float32)
    edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    ink = np.abs(gray - np.median(edge))
    # Nothing is drawn where the image is all but uniform.
    ink = np.clip(ink / max(float(np.percentile(ink, 98)), 16.0), 0.0, 1.0)
    return np.pad(ink, 3)


def _gray(image: Image.Image) -> Image.Image:
    """In mode L. Some modes, such as LAB, convert to RGB only."""
    try:
        return image.convert("L")
    except ValueError:
        return image.convert("RGB").convert("L")


def _measure(mask: np.ndarray) -> Attributes:
    """All attributes of a binary image, `[H, W]` bool, in the order in which they are said."""
    pieces, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return {}
    areas = np.bincount(pieces.ravel())
    areas[0] = 0  # the ground
    mask = (areas >= 0.1 * areas.max())[pieces]  # specks are left out
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    glyph = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return {
        **_loops(glyph),
        **_openings(glyph),
        **_sides(glyph),
        **_bars(glyph),
        **_proportions(glyph),
        **_symmetry(glyph),
    }


def _loops(glyph: np.ndarray) -> Attributes:
    """Holes: their number, and the size and place of a single one."""
    height, width = glyph.shape
    holes, _ = ndimage.label(~np.pad(glyph, 1))
    found = []
    for index, window in enumerate(ndimage.find_objects(holes), start=1):
        area = np.count_nonzero(holes[window] == index)
        outside = holes[0, 0] == index
        if not outside and area >= 0.01 * height * width:
            found.append(window[0])
    if len(found) > 1:
        return {"loops": "a pair of loops"}
    if not found:
        return {"loops": "no loop"}
    top, bottom = (found[0].start - 1) / height, (found[0].stop - 1) / height
    size = "a large loop" if bottom - top > 0.5 else "a small loop"
    return {"loops": size, "loop place": _third((top + bottom) / 2, "loop {}")}


def _third(place: float, phrase: str) -> str:
    """`phrase` with the third of the height in which `place` (0 top, 1 bottom) lies."""
    names = ("at the top", "in the middle", "at the bottom")
    return phrase.format(names[0 if place < 0.42 else 1 if place < 0.58 else 2])


def _openings(glyph: np.ndarray) -> Attributes:
    """Bays: background that meets ink in three of the four directions, by the open side."""
    hits = {}
    for side, (axis, backwards) in _DIRECTIONS.items():
        along = glyph if backwards else np.flip(glyph, axis)
        seen = np.logical_or.accumulate(along, axis)
        hits[side] = seen if backwards else np.flip(seen, axis)
    found = {}
    for side in _DIRECTIONS:
        others = [hits[other] for other in _DIRECTIONS if other != side]
        bay = np.logical_and.reduce(others) & ~hits[side] & ~glyph
        halves = {"": bay}
        if side in ("left", "right"):
            middle = glyph.shape[0] // 2
            halves = {" above": bay[:middle], " below": bay[middle:]}
        for half, part in halves.items():
            big = np.count_nonzero(part) >= 0.035 * glyph.size
            found[f"open {side}{half}"] = f"open to the {side}{half}" if big else ""
    return found


def _sides(glyph: np.ndarray) -> Attributes:
    """On which side the strokes lie that cross the upper and the lower half."""
    height, width = glyph.shape
    # A run of ink starts where a row steps up: [H, W] -> runs per row [H]
    runs = np.count_nonzero(np.diff(np.pad(glyph, ((0, 0), (1, 0))).astype(np.int8)) == 1, axis=1)
    # Centre of mass of each row, 0 left to 1 right, [H]; rows without ink stand in the middle.
    centers = glyph @ (np.arange(width) + 0.5) / np.maximum(glyph.sum(1), 1) / width
    found = {}
    for name, start, stop in (("upper", 0.2, 0.42), ("lower", 0.58, 0.8)):
        band = slice(int(start * height), max(int(stop * height), int(start * height) + 1))
        several = np.mean(runs[band] > 1)
        if several >= 0.6:
            found[name] = f"{name} strokes on both sides"
        elif several <= 0.4 and runs[band].any():
            center = np.mean(centers[band][runs[band] > 0])
            # The demo's tokenizer knows "centre", not "center".
            side = "left" if center < 0.4 else "right" if center > 0.6 else "centre"
            found[name] = f"{name} stroke {side}"
    return found


def _bars(glyph: np.ndarray) -> Attributes:
    """Rows and columns that ink runs through without a break."""
    height, width = glyph.shape
    found = {}
    if width < 0.4 * height:  # in a narrow glyph every row is full
        return found
    across, upright = _longest_runs(glyph) >= 0.7 * width, _longest_runs(glyph.T) >= 0.8 * height
    for name, start, stop in (("top", 0, 0.25), ("middle", 0.35, 0.7), ("bottom", 0.75, 1)):
        crossed = across[int(start * height) : int(np.ceil(stop * height))].any()
        found[f"{name} bar"] = f"{name} bar" if crossed else ""
    for name, start, stop in (("left", 0, 0.33), ("central", 0.33, 0.67), ("right", 0.67, 1)):
        crossed = upright[int(start * width) : int(np.ceil(stop * width))].any()
        found[f"{name} upright"] = f"{name} upright" if crossed else ""
    return found


def _longest_runs(glyph: np.ndarray) -> np.ndarray:
    """Length of the longest run of ink in each row, `[H]`."""
    place = np.arange(1, glyph.shape[1] + 1)
    # The last gap before each pixel; the distance to it is the length of the run so far.
    gap = np.maximum.accumulate(np.where(glyph, 0, place), axis=1)
    return (place - gap).max(axis=1)


def _proportions(glyph: np.ndarray) -> Attributes:
    """Width against height, and where the ink's center of mass lies in the glyph's frame."""
    height, width = glyph.shape
    ratio = width / height
    area = np.count_nonzero(glyph)
    row = (glyph.sum(1) @ (np.arange(height) + 0.5)) / area / height
    column = (glyph.sum(0) @ (np.arange(width) + 0.5)) / area / width
    return {
        "width": "narrow" if ratio < 0.5 else "wide" if ratio > 0.85 else "",
        "weight": "top heavy" if row < 0.46 else "bottom heavy" if row > 0.54 else "",
        "lean": "left heavy" if column < 0.44 else "right heavy" if column > 0.56 else "",
    }


def _symmetry(glyph: np.ndarray) -> Attributes:
    """Overlap with the mirrored and with the half-turned glyph."""

    def overlap(other: np.ndarray) -> float:
        return np.count_nonzero(glyph & other) / np.count_nonzero(glyph | other)

    return {
        "mirror": "mirror symmetric" if overlap(glyph[:, ::-1]) > 0.65 else "",
        "turn": "turn symmetric" if overlap(glyph[::-1, ::-1]) > 0.65 else "",
    }
