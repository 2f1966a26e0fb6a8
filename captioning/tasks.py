"""The descriptions to make: for each image and kind, the images to show, the prompt and the key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from captioning.engines import Identity
from captioning.groups import sample_groups, sample_groups_with_correct_count
from lattec_jax.data import pseudo_labels
from lattec_jax.data.datasets.dataset import Dataset
from lattec_jax.data.descriptions import (
    CORRECT_LABELS,
    Record,
    Sources,
    description_key,
    is_group,
)
from lattec_jax.data.images.content_hashes import UNREADABLE, content_hashes, content_path
from lattec_jax.data.text.prompts import CLASS, description_prompt
from lattec_jax.runtime.config import did_you_mean
from lattec_jax.runtime.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Task:
    """One description to make."""

    image: str
    kind: str
    prompt: str
    paths: tuple[Path, ...]  # of the images to show, in order
    members: tuple[str, ...]  # of a group: their ids
    note: str  # stored with the description
    key: str  # hash of everything that determines the description

    @classmethod
    def make(
        cls,
        image: str,
        kind: str,
        prompt: str,
        identity: Identity,
        shown: Sequence[tuple[Path, str]],
        members: tuple[str, ...] = (),
        note: str = "",
    ) -> Task:
        """Create a task and its key; `shown`: path and content hash of each image, in order."""
        # Unreadable images have no content hash to tell them apart, so their names are used.
        contents = [
            f"unreadable {name}" if content == UNREADABLE else content
            for name, (_, content) in zip(members or (image,), shown, strict=True)
        ]
        key = description_key(kind, prompt, *identity, contents)
        return cls(image, kind, prompt, tuple(path for path, _ in shown), members, note, key)

    def record(self, identity: Identity, text: str = "", error: str = "") -> Record:
        """Return the record to store, with a text or with the reason why there is none."""
        return Record(
            self.image, self.kind, text, identity.engine, identity.model, self.prompt,
            identity.decoding, self.members, self.note, self.key, error,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tasks:
    """All tasks of one kind, in the order of the data set."""

    kind: str
    tasks: tuple[Task, ...]
    unlabeled: tuple[str, ...]  # images without a pseudo-label, because they were unreadable


def check_kinds(config: ConfigDict, kinds: Sequence[str] | None) -> list[str]:
    """Return the kinds to describe; None: all that have a prompt. Raises ConfigError."""
    prompts = config.descriptions.prompts
    kinds = list(prompts) if kinds is None else list(kinds)
    for kind in kinds:
        if kind not in prompts:
            raise ConfigError(
                f"--kind: expected keys of config.descriptions.prompts ({', '.join(prompts)}), "
                f"found {kind!r}. {did_you_mean(kind, prompts)}"
            )
    return kinds


def make_tasks(
    config: ConfigDict,
    kinds: Sequence[str],
    dataset: Dataset,
    identity: Identity,
    sources: Sources | None = None,
) -> dict[str, Tasks]:
    """Return the tasks of each kind; raise DataError if it needs pseudo-labels without any."""
    train = dataset.train
    if sources:
        hashes = [sources.contents[image] for image in train.ids]
    else:
        hashes = content_hashes(train.paths, content_path(config))
    images = dict(zip(train.ids, zip(train.paths, hashes, strict=True), strict=True))
    prompts = {kind: config.descriptions.prompts[kind] for kind in kinds}
    need_labels = {kind for kind in kinds if is_group(kind) or CLASS in prompts[kind]}
    labels: dict[str, int] = {}
    if need_labels and sources:
        labels = dict(zip(sources.labels.ids, sources.labels.labels.tolist(), strict=True))
    elif need_labels:
        labels = _read_labels(config, dataset)
    groups, note = {}, ""
    if any(map(is_group, kinds)):
        groups, note = _groups(config, dataset, labels)
    tasks_of = {}
    for kind in kinds:
        tasks, unlabeled = [], []
        for image in train.ids:
            if kind in need_labels and image not in labels:
                unlabeled.append(image)
                continue
            class_name = dataset.class_names[labels[image]] if image in labels else ""
            prompt = description_prompt(prompts[kind], class_name)
            if is_group(kind):
                shown = [images[member] for member in groups[image]]
                task = Task.make(image, kind, prompt, identity, shown, groups[image], note)
            else:
                task = Task.make(image, kind, prompt, identity, [images[image]])
            tasks.append(task)
        tasks_of[kind] = Tasks(kind, tuple(tasks), tuple(unlabeled))
    return tasks_of


def labels_file(config: ConfigDict, dataset: Dataset) -> tuple[Path, dict[str, Any]]:
    """Return the path of the configured model's pseudo-labels, and their required provenance."""
    source = pseudo_labels.provenance(
        pseudo_labels.weights_sha256(config.weights), dataset.class_synonyms, config.templates
    )
    return pseudo_labels.pseudo_labels_path(config, source), source


def _read_labels(config: ConfigDict, dataset: Dataset) -> dict[str, int]:
    """Return image -> pseudo-label for the training images; an unreadable image has none."""
    path, source = labels_file(config, dataset)
    found = pseudo_labels.read(path, None, source)
    label_of = dict(zip(found.ids, found.labels.tolist(), strict=True))
    labels = {image: label_of[image] for image in dataset.train.ids if image in label_of}
    if not labels:
        raise DataError(
            f"{path} has no label for any of the {len(dataset.train.ids)} training images; make "
            f"them again with {pseudo_labels.COMMAND}"
        )
    return labels


def _groups(
    config: ConfigDict, dataset: Dataset, labels: Mapping[str, int]
) -> tuple[dict[str, tuple[str, ...]], str]:
    """Return the members of each image's group, and the note to store with an analysis."""
    settings = config.descriptions
    size, correct, seed = settings.group_size, settings.correct_per_group, settings.seed
    ids, assigned = list(labels), np.array(list(labels.values()))
    if correct is None:
        return sample_groups(ids, assigned, size, seed, settings.group_members == "with_image"), ""
    if correct > size:
        raise ConfigError(
            f"config.descriptions.correct_per_group: expected 0 to {size} (group_size), found "
            f"{correct}"
        )
    if dataset.train.labels is None:
        raise DataError(
            "config.descriptions.correct_per_group is an analysis with the true labels of the "
            f"training images, and those of {dataset.name} have none; leave it unset"
        )
    position = {image: index for index, image in enumerate(dataset.train.ids)}
    true = dataset.train.labels[[position[image] for image in ids]]
    reference = settings.correct_label
    groups = sample_groups_with_correct_count(ids, assigned, size, seed, true, correct, reference)
    note = f"analysis with true labels: {correct} of {size} images correct"
    return groups, f"{note}, counted against {CORRECT_LABELS[reference]}"
