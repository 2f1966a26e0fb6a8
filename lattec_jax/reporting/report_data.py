"""Collect `report_data.json` at the end of training: what the report shows beside `results.json`.

It contains thumbnails, so that the report needs no image cache, and the predictions for all
evaluated images before and after training.
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
from lattec_jax.reporting import page
from lattec_jax.reporting.health_metrics import nearest_classes
from lattec_jax.runtime import schemas
from lattec_jax.runtime.errors import UserError
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.run_directory import REPORT_DATA
from lattec_jax.runtime.text import print_escaped
from lattec_jax.training.prepare import Inputs
from lattec_jax.training.state import TrainState

MAX_EXAMPLES, MAX_CHANGED = 18, 36  # images on the page
THUMBNAIL_SIZE = 128  # pixels of the longer side
MAX_COSINE_CLASSES = 50  # with more classes, the matrix of cosines is not stored


def collect(
    inputs: Inputs,
    method: Method,
    state: TrainState,
    template: str,
    class_weights: tuple[Float[np.ndarray, "C D"], Float[np.ndarray, "C D"]],
    evaluated: tuple[Mapping[str, Any], Mapping[str, Any]],
    predictions: Int[np.ndarray, " N"],
) -> dict[str, Any]:
    """Return the content of `report_data.json`. All processes call it to encode the examples.

    Args:
        template: of the class-descriptions in training.
        class_weights: of the zero-shot and of the adapted model.
        evaluated: `results.evaluate_scores` of both models.
        predictions: of the adapted model for the training images.
    """
    before, after = (found["predictions"] for found in evaluated)
    return {
        "prototypes": _prototypes(*class_weights),
        "confusion": _confusion(inputs, before, after),
        "changed": _changed(inputs, before, after),
        "examples": _examples(inputs, method, state, template, predictions),
        "evaluated": {
            "images": list(inputs.eval_split.ids),
            "before": before.tolist(),
            "after": after.tolist(),
        },
    }


def save(directory: Path, data: Mapping[str, Any]) -> None:
    """Write `report_data.json`, with null for numbers that are not finite."""
    content = json.dumps(schemas.json_safe(data), allow_nan=False)
    write_atomic(directory / REPORT_DATA, content + "\n")


def write_page(directory: Path) -> None:
    """Write `report.html`. The results are on disk already, so an error is only printed."""
    try:
        page.write(directory)
    except (OSError, UserError) as error:
        print_escaped(
            f"warning: the report could not be written: {error}. The results are complete; "
            f"python -m lattec_jax.report --workdir={directory} writes it again",
            file=sys.stderr,
        )


def _prototypes(
    before: Float[np.ndarray, "C D"], after: Float[np.ndarray, "C D"]
) -> dict[str, Any]:
    """Return each class's nearest class with the cosine before and after, and all cosines."""
    cosines_after, nearest = nearest_classes(after)
    cosines_before = np.sum(before * before[nearest], axis=1)
    columns = (nearest.tolist(), cosines_before.tolist(), cosines_after.tolist())
    few_classes = len(after) <= MAX_COSINE_CLASSES
    return {
        "nearest": [[c, *row] for c, row in enumerate(zip(*columns, strict=True))],
        "cosines": np.round(after @ after.T, 3).tolist() if few_classes else None,
    }


def _confusion(
    inputs: Inputs, before: Int[np.ndarray, " T"], after: Int[np.ndarray, " T"]
) -> dict[str, list] | None:
    """Return the nonzero entries of both confusion matrices; None without labels."""
    labels, found = inputs.test_labels, {}
    if labels is None:
        return None
    for when, predictions in (("before", before), ("after", after)):
        counts = Counter(zip(labels.tolist(), predictions.tolist(), strict=True))
        found[when] = [[true, predicted, n] for (true, predicted), n in sorted(counts.items())]
    return found


def _changed(
    inputs: Inputs, before: Int[np.ndarray, " T"], after: Int[np.ndarray, " T"]
) -> dict[str, Any]:
    """Return the number of evaluated images whose prediction changed, and a sample of them."""
    images, names, labels = inputs.eval_split, inputs.dataset.class_names, inputs.test_labels
    changed = np.flatnonzero(before != after)
    shown = [
        {
            "image": images.ids[i],
            "thumbnail": thumbnail(images.eval_cache.pixels[i]),
            "before": names[before[i]],
            "after": names[after[i]],
            "label": None if labels is None else names[labels[i]],
        }
        for i in changed[evenly_spaced(len(changed), MAX_CHANGED)]
    ]
    right = wrong = None
    if labels is not None:
        right = int(np.sum((before != labels) & (after == labels)))
        wrong = int(np.sum((before == labels) & (after != labels)))
    counts = {"count": len(changed), "of": len(before), "right": right, "wrong": wrong}
    return {**counts, "shown": shown}


def _examples(
    inputs: Inputs,
    method: Method,
    state: TrainState,
    template: str,
    predictions: Int[np.ndarray, " N"],
) -> list[dict[str, Any]]:
    """Return a sample of training images with their texts, mixer weights and pseudo-labels."""
    images, names = inputs.train, inputs.dataset.class_names
    found = []
    for i in evenly_spaced(len(images.ids), MAX_EXAMPLES).tolist():
        zero_shot, current = int(inputs.pseudo_labels.labels[i]), int(predictions[i])
        texts = []
        if method.trains and method.class_text:
            classes = dict.fromkeys((zero_shot, current))
            texts = [("class", template.replace("{}", names[c])) for c in classes]
        if inputs.descriptions:
            texts += [
                (kind, inputs.descriptions.texts[kind][i]) for kind in method.description_kinds
            ]
        found.append(
            {
                "image": images.ids[i],
                "thumbnail": thumbnail(images.eval_cache.pixels[i]),
                "zero_shot": names[zero_shot],
                "current": names[current],
                "texts": [{"kind": kind, "text": text, "weight": None} for kind, text in texts],
            }
        )
    present = [text for entry in found for text in entry["texts"] if text["text"]]
    if present and isinstance(method, PrototypeMethod):
        tokens = inputs.weights.tokenizer([text["text"] for text in present])
        features = jnp.asarray(inputs.extractor.encode_texts(state.params, tokens))
        weights = method.mixer_weights(features, state.method)
        if weights is not None:
            for text, weight in zip(present, np.asarray(weights, np.float64), strict=True):
                text["weight"] = round(float(weight), 6)
    return found


def evenly_spaced(count: int, max_selected: int) -> Int[np.ndarray, " n"]:
    """Return at most `max_selected` evenly spaced indices below `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, max_selected)).round().astype(int))


def thumbnail(pixels: UInt8[np.ndarray, "S S 3"]) -> str:
    """Return evaluation pixels as a data URI of a JPEG image."""
    image = Image.fromarray(np.asarray(pixels))
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
