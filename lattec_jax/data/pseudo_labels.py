"""Pseudo-label files: one JSON object per line, and their provenance in a second file.

    {"image": id, "label": int, "class": str, "score": float, "margin": float}

`score` is the softmax probability of the label, `margin` its difference to the second highest. The
provenance (a JSON file with the same stem) contains the weights, class names and templates that the
labels were computed with; labels of another provenance are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lattec_jax.runtime import safe_read
from lattec_jax.runtime.config import artifacts_dir
from lattec_jax.runtime.errors import DataError, WeightsError, short_repr
from lattec_jax.runtime.files import write_atomic, write_json
from lattec_jax.runtime.weights import WEIGHTS_FILE, locate

COMMAND = "python -m lattec_jax.pseudo_label --config=..."
_ADVICE = f"make the pseudo-labels with {COMMAND}"


@dataclasses.dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of N images."""

    ids: tuple[str, ...]
    labels: np.ndarray  # [N] int32
    scores: np.ndarray  # [N] float32
    margins: np.ndarray  # [N] float32


def weights_sha256(weights: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the parameters that `config.weights` names, in any of its forms."""
    path = locate(weights) / WEIGHTS_FILE
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(
            f"config.weights: expected a checkpoint directory, but {path} cannot be read "
            f"({error.strerror}); make one with python -m convert.openclip_to_flax"
        ) from error


def provenance(
    weights: str, names: Sequence[Sequence[str]], templates: Sequence[str]
) -> dict[str, Any]:
    """Return what pseudo-labels depend on: the SHA-256 of the parameters, all names of each class,
    the display name first, and the templates of the class-descriptions."""
    return {
        "weights_sha256": weights,
        "class_names": [of_class[0] for of_class in names],
        "names": [list(of_class) for of_class in names],
        "templates": list(templates),
    }


def pseudo_labels_path(config: ConfigDict, source: Mapping[str, Any]) -> Path:
    """Return the file with the pseudo-labels of this provenance."""
    text = json.dumps([source["names"], source["templates"]])
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"{source['weights_sha256'][:8]}-{digest}.jsonl"
    return artifacts_dir(config) / "pseudo_labels" / name


def write(
    path: str | os.PathLike[str],
    ids: Sequence[str],
    labels: np.ndarray,
    scores: np.ndarray,
    margins: np.ndarray,
    source: Mapping[str, Any],
) -> None:
    """Write `[N]` labels, scores and margins and their provenance, each file atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = source["class_names"]
    lines = []
    for i, n, s, m in zip(ids, labels.tolist(), scores.tolist(), margins.tolist(), strict=True):
        values = {"image": i, "label": n, "class": names[n], "score": s, "margin": m}
        lines.append(json.dumps(values, ensure_ascii=False) + "\n")
    # The provenance is written first, so that existing labels always have one.
    write_json(path.with_suffix(".json"), dict(source))
    write_atomic(path, "".join(lines))


def read(
    path: str | os.PathLike[str],
    image_ids: Sequence[str] | None,
    source: Mapping[str, Any],
    advice: str = _ADVICE,
) -> PseudoLabels:
    """Read the labels of the given images (None: all in the file), in their order.

    Raise DataError if the file does not exist, has another provenance or a malformed line, or lacks
    an image; its message ends with `advice`.
    """
    from lattec_jax.runtime import schemas

    path = Path(path)
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        raise DataError(f"no pseudo-labels at {path}; {advice}")
    written = schemas.read(sidecar, schemas.Provenance, DataError, advice)
    for key, expected in source.items():
        if written.get(key) != expected:
            raise DataError(
                f"the pseudo-labels at {path} are of other {key}: expected "
                f"{short_repr(expected, 100)}, found {short_repr(written.get(key), 100)}; {advice}"
            )
    names = source["class_names"]
    found: dict[str, tuple[int, float, float]] = {}
    try:
        with safe_read.open_regular(path) as file:
            for number, line in enumerate(safe_read.bounded_lines(file), 1):
                image, values = _parse(line, path, number, names, advice)
                found[image] = values
    except FileNotFoundError as error:
        raise DataError(f"no pseudo-labels at {path}; {advice}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; {advice}") from error
    ids = tuple(found if image_ids is None else image_ids)
    if missing := [image for image in ids if image not in found]:
        raise DataError(
            f"{path} has no pseudo-label for {len(missing)} of {len(ids)} images, the first: "
            f"{missing[0]!r}; {advice}"
        )
    return PseudoLabels(
        ids=ids,
        labels=np.array([found[image][0] for image in ids], np.int32),
        scores=np.array([found[image][1] for image in ids], np.float32),
        margins=np.array([found[image][2] for image in ids], np.float32),
    )


def _parse(
    line: bytes, path: Path, number: int, names: Sequence[str], advice: str
) -> tuple[str, tuple[int, float, float]]:
    """Parse one line to its image, and label, score and margin."""
    try:
        values = safe_read.parse_json(line)
        image, label = values["image"], values["label"]
        score, margin = values["score"], values["margin"]
        if not isinstance(image, str) or type(label) is not int or not 0 <= label < len(names):
            raise ValueError(f"no image or no label from 0 to {len(names) - 1}")
        for key, value in (("score", score), ("margin", margin)):
            if type(value) not in (int, float) or not -1e-3 <= value <= 1 + 1e-3:
                raise ValueError(f"{key} is no number from 0 to 1")
        if values["class"] != names[label]:
            raise ValueError(
                f"class {short_repr(values['class'])} is not number {label}, {names[label]!r}"
            )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}:{number}: expected a pseudo-label, found "
            f"{line[:80].decode(errors='replace').strip()!r} ({type(error).__name__}: {error}); "
            f"{advice}"
        ) from error
    return image, (label, float(score), float(margin))
