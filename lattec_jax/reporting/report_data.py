"""What the report shows beside `results.json` and the log: computed once, at the end of training.

`report_data.json` holds thumbnails, so that the page needs no image cache, and of every evaluated
image its class before and after.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from lattec_jax.methods.base import Method, PrototypeMethod
from lattec_jax.reporting import health, page
from lattec_jax.runtime import schemas
from lattec_jax.runtime.errors import UserError
from lattec_jax.runtime.files import write_whole
from lattec_jax.runtime.run_directory import REPORT_DATA
from lattec_jax.runtime.text import show
from lattec_jax.training.prepare import Inputs
from lattec_jax.training.state import TrainState

EXAMPLES, CHANGED = 18, 36  # images on the page
THUMBNAIL = 128  # pixels, at most
DRAWN_COSINES = 50  # classes up to which all cosines are kept


def collect(
    inputs: Inputs,
    method: Method,
    state: TrainState,
    template: str,
    vectors: tuple[Float[np.ndarray, "C D"], Float[np.ndarray, "C D"]],
    evaluated: tuple[Mapping[str, Any], Mapping[str, Any]],
    predictions: Int[np.ndarray, " N"],
) -> dict[str, Any]:
    """What `report_data.json` holds. Called on all processes, which encode the examples together.

    Args:
        inputs: of the run.
        method: of the run.
        state: adapted.
        template: of the class-descriptions in training.
        vectors: of the classes, before and after.
        evaluated: `results.score` before and after.
        predictions: of the adapted model for the training images.
    """
    before, after = (found["predictions"] for found in evaluated)
    return {
        "prototypes": _prototypes(*vectors),
        "confusion": _confusion(inputs, before, after),
        "changed": _changed(inputs, before, after),
        "examples": _examples(inputs, method, state, template, predictions),
        "evaluated": {
            "images": list((inputs.test or inputs.images).ids),
            "before": before.tolist(),
            "after": after.tolist(),
        },
    }


def save(directory: Path, data: Mapping[str, Any]) -> None:
    """Write `report_data.json`, with null for numbers that are not finite.

    `results.json`, which ends a run, is written after it: a run that is killed in between writes
    both again.
    """
    content = json.dumps(schemas.cleaned(data), allow_nan=False)
    write_whole(directory / REPORT_DATA, content + "\n")


def write_page(directory: Path) -> None:
    """Write `report.html`. The results are on disk already: a page that cannot be written is said
    and no more."""
    try:
        show(f"report in {page.write(directory)}")
    except (OSError, UserError) as error:
        show(
            f"warning: the report could not be written: {error}. The results are whole; "
            f"python -m lattec_jax.report --workdir={directory} writes it again",
            file=sys.stderr,
        )


def _prototypes(
    before: Float[np.ndarray, "C D"], after: Float[np.ndarray, "C D"]
) -> dict[str, Any]:
    """Each class with its nearest other one, and the cosine of the two at the start and now."""
    similarity, other = health.nearest(after)
    start = np.sum(before * before[other], axis=1)
    columns = zip(other.tolist(), start.tolist(), similarity.tolist(), strict=True)
    few = len(after) <= DRAWN_COSINES
    return {
        "nearest": [[c, *row] for c, row in enumerate(columns)],
        "cosines": np.round(after @ after.T, 3).tolist() if few else None,
    }


def _confusion(
    inputs: Inputs, before: Int[np.ndarray, " T"], after: Int[np.ndarray, " T"]
) -> dict[str, list] | None:
    """(true class, predicted class, images) for the pairs that occur; None without labels."""
    labels = inputs.test.labels if inputs.test else None
    if labels is None:
        return None
    found = {"before": before, "after": after}
    return {
        when: [
            [*pair, n]
            for pair, n in sorted(Counter(zip(labels.tolist(), p.tolist(), strict=True)).items())
        ]
        for when, p in found.items()
    }


def _changed(
    inputs: Inputs, before: Int[np.ndarray, " T"], after: Int[np.ndarray, " T"]
) -> dict[str, Any]:
    """How many evaluated images changed class, and some of them, evenly spread."""
    images, names = inputs.test or inputs.images, inputs.dataset.class_names
    labels = inputs.test.labels if inputs.test else None
    rows = np.flatnonzero(before != after)
    shown = [
        {
            "image": images.ids[row],
            "thumbnail": thumbnail(images.evaluation.pixels[row]),
            "before": names[before[row]],
            "after": names[after[row]],
            "label": None if labels is None else names[labels[row]],
        }
        for row in rows[spread(len(rows), CHANGED)]
    ]
    right = wrong = None
    if labels is not None:
        right = int(np.sum((before != labels) & (after == labels)))
        wrong = int(np.sum((before == labels) & (after != labels)))
    counts = {"count": len(rows), "of": len(before), "right": right, "wrong": wrong}
    return {**counts, "shown": shown}


def _examples(
    inputs: Inputs,
    method: Method,
    state: TrainState,
    template: str,
    predictions: Int[np.ndarray, " N"],
) -> list[dict[str, Any]]:
    """Training images, evenly spread, with their texts, weights and both pseudo-labels."""
    images, names = inputs.images, inputs.dataset.class_names
    rows = spread(len(images.ids), EXAMPLES)
    first, current = inputs.zero_shot.labels[rows], predictions[rows]
    found = []
    for row, a, b in zip(rows.tolist(), first.tolist(), current.tolist(), strict=True):
        texts = []
        if method.trains and method.class_text:
            texts = [("class", template.replace("{}", names[c])) for c in dict.fromkeys((a, b))]
        for kind in method.description_kinds if inputs.texts else ():
            texts.append((kind, inputs.texts.texts[kind][row]))
        found.append(
            {
                "image": images.ids[row],
                "thumbnail": thumbnail(images.evaluation.pixels[row]),
                "zero_shot": names[a],
                "current": names[b],
                "texts": [{"kind": kind, "text": text, "weight": None} for kind, text in texts],
            }
        )
    said = [text for entry in found for text in entry["texts"] if text["text"]]
    if said and isinstance(method, PrototypeMethod):
        tokens = inputs.weights.tokenizer([text["text"] for text in said])
        features = jnp.asarray(inputs.extractor.texts(state.params, tokens))
        weights = method.mixer_weights(features, state.method)
        if weights is not None:
            for text, weight in zip(said, np.asarray(weights, np.float64), strict=True):
                text["weight"] = round(float(weight), 6)
    return found


def spread(count: int, wanted: int) -> Int[np.ndarray, " n"]:
    """At most `wanted` of the numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def thumbnail(pixels: UInt8[np.ndarray, "S S 3"]) -> str:
    """A JPEG data URI of evaluation pixels."""
    image = Image.fromarray(np.asarray(pixels))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
