"""Describe a glyph in words, from its pixels.

The description states what can be measured on any light or dark mark on a plain background: closed
loops and their positions, openings and their sides, horizontal and vertical bars, the side of the
strokes in the upper and in the lower half, width, symmetry and where the ink is. There are no rules
for particular classes, and descriptions contain no digits and no number words.

Each attribute is measured at several thresholds. If they disagree, the attribute is uncertain and
is left out. The description of a group contains what most of its images share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np
from PIL import Image
from scipy import ndimage

Attributes = dict[str, str]  # attribute -> phrase, "" if there is nothing to mention

_SIDE = 40  # pixels; images are resized to this long side
_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)  # fractions of the strongest ink
_AGREEMENT = 0.6  # fraction of the thresholds that must agree
_MAX_WORDS = 25
# Directions in which ink is searched from a background pixel: name -> (axis, whether backwards)
_DIRECTIONS = {"top": (0, True), "bottom": (0, False), "left": (1, True), "right": (1, False)}


def describe_image(image: Image.Image) -> str:
    """Describe a single image, in at most 25 words."""
    return say([attributes(image)])


def say(certain: Sequence[Attributes]) -> str:
    """Describe what more than half of the images share, in at most 25 words."""
    phrases, words = [], 0
    for phrase in _shared(certain, 0.5 * len(certain)).values():
        length = len(phrase.split())
        if phrase and words + length <= _MAX_WORDS:
            phrases.append(phrase)
            words += length
    return ", ".join(phrases) if phrases else "a faint mark"


def attributes(image: Image.Image) -> Attributes:
    """Return the attributes of an image on which most thresholds agree."""
    ink = _ink(image)
    measured = [_measure(ink >= threshold) for threshold in _THRESHOLDS]
    return _shared(measured, _AGREEMENT * len(measured) - 0.5)


def _shared(measured: Sequence[Attributes], more_than: float) -> Attributes:
    """Return the most common value of each attribute, if more than `more_than` have it."""
    names = dict.fromkeys(name for found in measured for name in found)
    shared = {}
    for name in names:
        votes = Counter(found[name] for found in measured if name in found)
        value, count = votes.most_common(1)[0]
        if count > more_than:
            shared[name] = value
    return shared


def _ink(image: Image.Image) -> np.ndarray:
    """Return the ink from 0 (background) to 1, `[H, W]`, resized and with an empty margin.

    The background is the median of the image's edge.
    """
    scale = _SIDE / max(image.size)
    width, height = (max(4, round(length * scale)) for length in image.size)
    gray = np.asarray(_gray(image).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    ink = np.abs(gray - np.median(edge))
    # A nearly uniform image has no ink.
    ink = np.clip(ink / max(float(np.percentile(ink, 98)), 16.0), 0.0, 1.0)
    return np.pad(ink, 3)


def _gray(image: Image.Image) -> Image.Image:
    """Convert to grayscale. Some modes, such as LAB, can only be converted to RGB."""
    try:
        return image.convert("L")
    except ValueError:
        return image.convert("RGB").convert("L")


def _measure(mask: np.ndarray) -> Attributes:
    """Measure all attributes of a binary image, `[H, W]` bool, in the order of the description."""
    components, count = _label(mask, np.ones((3, 3)))
    if not count:
        return {}
    areas = np.bincount(components.ravel())
    areas[0] = 0  # the background
    mask = (areas >= 0.1 * areas.max())[components]  # without specks
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


def _label(mask: np.ndarray, structure: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Label connected components; return the labels and the number of components."""
    return cast("tuple[np.ndarray, int]", ndimage.label(mask, structure))


def _loops(glyph: np.ndarray) -> Attributes:
    """Holes: their number, and the size and position of a single one."""
    height, width = glyph.shape
    holes, _ = _label(~np.pad(glyph, 1))
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
    center = (top + bottom) / 2  # 0 top, 1 bottom
    third = "at the top" if center < 0.42 else "in the middle" if center < 0.58 else "at the bottom"
    return {"loops": size, "loop position": f"loop {third}"}


def _openings(glyph: np.ndarray) -> Attributes:
    """Openings: background that meets ink in three of the four directions."""
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
    """The side of the strokes in the upper and in the lower half."""
    height, width = glyph.shape
    # A run of ink starts where a row steps from 0 to 1: [H, W] -> runs per row [H]
    runs = np.count_nonzero(np.diff(np.pad(glyph, ((0, 0), (1, 0))).astype(np.int8)) == 1, axis=1)
    # Center of mass of each row from 0 (left) to 1 (right), [H]; 0 for rows without ink.
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
    """Bars: rows and columns with a long run of ink."""
    height, width = glyph.shape
    found = {}
    if width < 0.4 * height:  # a narrow glyph fills every row
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
    position = np.arange(1, glyph.shape[1] + 1)
    # The last gap before each pixel; the distance to it is the length of the run so far.
    gap = np.maximum.accumulate(np.where(glyph, 0, position), axis=1)
    return (position - gap).max(axis=1)


def _proportions(glyph: np.ndarray) -> Attributes:
    """The aspect ratio, and the ink's center of mass."""
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
    """Overlap with the mirrored glyph and with the glyph rotated by 180°."""

    def overlap(other: np.ndarray) -> float:
        return np.count_nonzero(glyph & other) / np.count_nonzero(glyph | other)

    return {
        "mirror": "mirror symmetric" if overlap(glyph[:, ::-1]) > 0.65 else "",
        "turn": "turn symmetric" if overlap(glyph[::-1, ::-1]) > 0.65 else "",
    }
