"""Whether a run can be compared with the paper: whatever the paper fixes must be equal.

A run's `config.json` is compared, key by key, with the packaged configuration of its data set for
the run's preset and the method and overrides of its row. Every key counts except `EXEMPT`. Runs of
both presets can be compared: which of the two gave the printed numbers is not known, so the note
below a table names the preset. Weights, protocol and the numbers of classes and images are compared
as `results.json` records them.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lattec_jax.data.datasets.coop import PROTOCOL
from lattec_jax.data.datasets.dataset import fraction_count, fraction_protocol
from lattec_jax.paper_tables.plan import column, config_argument, load_config
from lattec_jax.paper_tables.tables import (
    CLASSIFY,
    MODEL,
    PRETRAINED,
    REPOSITORY,
    Row,
    paper_datasets,
)
from lattec_jax.runtime.config import flatten, from_json, to_json
from lattec_jax.runtime.config_file import PACKAGED_CONFIGS
from lattec_jax.runtime.errors import ConfigError, short_repr
from lattec_jax.runtime.run_directory import CONFIG, MAY_CHANGE_ON_RESUME

# Keys (`*`: any) that are not compared: how a run is computed and logged, where its files are,
# seeds, what `results.json` decides (weights, protocol, counts), and the reading of Table 4,
# which the paper leaves open and the table's note states.
EXEMPT = (
    *sorted(MAY_CHANGE_ON_RESUME),
    "artifacts",
    "checkpoint_every",
    "compute.*",  # the note states the dtype
    "dataset.expected.*",
    "dataset.images",
    "dataset.kind",
    "dataset.root",
    "dataset.source",
    "dataset.split",
    "dataset.split_seed",
    "dataset.tfds.*",
    "descriptions.correct_label",
    "descriptions.llava.batch_size",
    "descriptions.llava.device",
    "descriptions.llava.revision",
    "descriptions.openai.*",  # the engine itself counts
    "descriptions.seed",
    "eval_every",
    "max_checkpoints",
    "log_every",
    "seed",
    "weights",
)
# Sections that a row's command does not read.
_NO_DESCRIPTIONS = ("descriptions.*",)
_NO_CLIP = ("augment.*", "init", "method.*", "image_cache.*", "templates", "train.*", "wise_ft")
# SHA-256 of the `model.safetensors` converted from the paper's weights. As long as it is empty, the
# source that the conversion recorded decides.
WEIGHTS_SHA256: frozenset[str] = frozenset()
_LISTED = 3  # keys that differ, in one reason
_ABSENT = "(absent)"


def reason_not_comparable(
    dataset: str, row: Row, directory: Path, run: Mapping[str, Any]
) -> str | None:
    """Return why a run, of which `run` is the `results.json`, cannot be compared with the paper;
    None if it can."""
    if run["dataset"] not in paper_datasets() or run["dataset"] != column(dataset):
        return f"the data set is {run['dataset']}"
    try:
        config = from_json(directory / CONFIG)
        file = PACKAGED_CONFIGS / f"{run['dataset']}.py"
        expected = load_config((config_argument(file, run["preset"], row.method), *row.overrides))
    except ConfigError as error:
        return str(error).rstrip(".")
    found = (
        _protocol(run, expected),
        _counts(run, row, expected),
        None if row.module == CLASSIFY else _weights(run),
        _configuration(config, expected, row),
    )
    return "; ".join(filter(None, found)) or None


def _protocol(run: Mapping[str, Any], expected: ConfigDict) -> str | None:
    images, fraction = expected.dataset.expected.train, expected.dataset.train_fraction
    wanted = PROTOCOL
    if fraction != 1:
        wanted = fraction_protocol(PROTOCOL, fraction_count(images, fraction), images)
    if run["protocol"] == wanted:
        return None
    return f"the protocol is {run['protocol']!r} instead of {wanted!r}"


def _counts(run: Mapping[str, Any], row: Row, expected: ConfigDict) -> str | None:
    """Compare the numbers of classes and images; unreadable images count, the split lists them."""
    wanted = expected.dataset.expected
    unreadable = run["n_left_out"]
    found = [
        ("classes", len(run["class_names"]), wanted.classes),
        ("test images", run["n_test"] + unreadable["test"], wanted.test),
    ]
    if row.module != CLASSIFY:  # which looks at no training image
        train = fraction_count(wanted.train, expected.dataset.train_fraction)
        found.append(("training images", run["n_train"] + unreadable["train"], train))
    wrong = [f"{n:,} {what} instead of {right:,}" for what, n, right in found if n != right]
    return f"there are {', '.join(wrong)}" if wrong else None


def _weights(run: Mapping[str, Any]) -> str | None:
    """Compare the weights' SHA-256 if the paper's is known, otherwise their source."""
    if WEIGHTS_SHA256:
        if run.get("weights_sha256") in WEIGHTS_SHA256:
            return None
        return f"the weights' SHA-256 is {run.get('weights_sha256')}, not that of {PRETRAINED}"
    source = run.get("weights_source")
    if source is None:
        return "results.json does not record where the weights come from"
    if "adapted_with" in source:
        return f"the weights were adapted with {source['adapted_with']}"
    by_tag = (source.get("model"), source.get("pretrained")) == (MODEL, PRETRAINED)
    if by_tag or str(source.get("hub")).partition("@")[0] == REPOSITORY:
        return None
    names = [source[key] for key in ("model", "pretrained", "hub") if source.get(key)]
    named = " ".join(map(str, names)) or "of an unknown source"
    return f"the weights are {named}, not {MODEL} {PRETRAINED}"


def _configuration(config: ConfigDict, expected: ConfigDict, row: Row) -> str | None:
    """List the keys that differ."""
    exempt = EXEMPT
    if row.module == CLASSIFY:
        exempt += _NO_CLIP
    elif not row.needs_descriptions:
        exempt += _NO_DESCRIPTIONS
    found, wanted = _plain(config), _plain(expected)
    differing = [
        f"config.{key} is {short_repr(found.get(key, _ABSENT))} instead of "
        f"{short_repr(wanted.get(key, _ABSENT))}"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key, _ABSENT) != wanted.get(key, _ABSENT)
        and not any(fnmatch.fnmatchcase(key, pattern) for pattern in exempt)
    ]
    more = len(differing) - _LISTED
    listed = ", ".join(differing[:_LISTED]) + (f" and {more} more" if more > 0 else "")
    return listed or None


def _plain(config: ConfigDict) -> dict[str, Any]:
    """Return values by dotted keys, as JSON stores them."""
    content = json.loads(to_json(config))
    return dict(flatten(ConfigDict(content, convert_dict=True)))
