"""Preparation: read what training starts from, and make what is missing where that is cheap.

Image caches and pseudo-labels are written when they are missing, and so are descriptions by an
engine that looks at pixels only. Descriptions by a vision-language model take hours on a GPU: if
they are missing, an error names the command that makes them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lattec_jax.data import descriptions as description_files
from lattec_jax.data import pseudo_labels as pseudo_label_files
from lattec_jax.data.datasets import remove_leftovers
from lattec_jax.data.datasets.dataset import Dataset, Split
from lattec_jax.data.descriptions import Descriptions, Expected, Sources
from lattec_jax.data.images.content_hashes import content_hashes, content_path
from lattec_jax.data.images.image_cache import ImageCache, open_image_caches
from lattec_jax.data.pseudo_labels import PseudoLabels
from lattec_jax.data.text.prompts import ClassPrompts, class_prompts, description_prompt
from lattec_jax.inference.feature_extractor import (
    FeatureExtractor,
    class_probabilities,
    make_feature_extractor,
)
from lattec_jax.methods.base import Method
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.runtime import distributed, sharding
from lattec_jax.runtime.config import artifacts_dir
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.weights import locate
from lattec_jax.training.warm_start import WarmStart
from lattec_jax.training.warm_start import load as load_warm_start

log = logging.getLogger(__name__)

CHEAP_ENGINES = ("pixels",)  # of `config.descriptions.engine`: fast, and they need no PyTorch
# Writes the missing descriptions of some kinds. `lattec_jax.train` passes the captioning package's.
Describe = Callable[[ConfigDict, tuple[str, ...], Sources], object]


@dataclasses.dataclass(frozen=True)
class SplitImages:
    """The N readable images of a split."""

    labels: np.ndarray | None  # [N] int32; None where unknown
    eval_cache: ImageCache  # preprocessed for evaluation
    uncropped_cache: ImageCache | None  # for augmented crops; None if nothing is augmented

    @property
    def train_cache(self) -> ImageCache:
        """The cache that training reads: uncropped images if they are augmented."""
        return self.uncropped_cache or self.eval_cache

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the images, in the order of every array."""
        return self.eval_cache.ids

    @property
    def fingerprint(self) -> str:
        """Changes with the files and with their preprocessing."""
        return self.eval_cache.directory.name

    @property
    def unreadable(self) -> list[str]:
        """Ids of the images that were left out."""
        return [entry["image"] for entry in self.eval_cache.failed]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """All that training starts from."""

    dataset: Dataset
    weights: Checkpoint
    extractor: FeatureExtractor
    train: SplitImages
    test: SplitImages | None
    pseudo_labels: PseudoLabels  # zero-shot, of the training images
    descriptions: Descriptions | None  # None for a method that uses none
    prompts: ClassPrompts
    warm_start: WarmStart | None  # None: training starts from `weights`

    @property
    def eval_split(self) -> SplitImages:
        """The test images, or the training images if there are no test images."""
        return self.test or self.train

    @property
    def test_labels(self) -> np.ndarray | None:
        """Labels of the test images, `[T]`, or None if there are none. Accuracy is never computed
        on training images."""
        return self.test.labels if self.test else None


def prepare_inputs(
    config: ConfigDict,
    dataset: Dataset,
    arguments: str,
    method: Method,
    mesh: Mesh,
    describe: Describe,
) -> Inputs:
    """Read the inputs of a run and make what is missing and cheap. All processes compute; only the
    main process writes files.

    Args:
        dataset: its images that are not on disk yet are written.
        arguments: the `--config...` arguments of the command line, for commands in messages.
        describe: called for an engine of `CHEAP_ENGINES`.

    Raises:
        DataError: the method requires descriptions or labels that do not exist.
    """
    weights = load_weights(config)
    if "labels" in method.requires and dataset.train.labels is None:
        raise DataError(
            f"method {method.name} trains with true labels, and the training images of "
            f"{dataset.name} have none; set config.dataset.labels or choose another method"
        )
    with distributed.main_process_first():
        start = load_warm_start(config, weights, dataset.class_names)
        if distributed.is_main_process():
            remove_leftovers(config)
        dataset.on_disk()
    extractor = make_feature_extractor(config, weights, mesh)
    train = open_images(config, dataset, "train", weights, method.trains and method.augments)
    test = open_images(config, dataset, "test", weights) if dataset.test else None
    prompts = make_prompts(config, dataset, weights)
    pseudo_labels = prepare_pseudo_labels(config, dataset, weights, train, extractor, mesh)
    descriptions = None
    if "descriptions" in method.requires:
        with distributed.main_process_first():
            descriptions = load_descriptions(
                config, arguments, dataset, train, pseudo_labels, method.description_kinds, describe
            )
    return Inputs(
        dataset, weights, extractor, train, test, pseudo_labels, descriptions, prompts, start
    )


def load_weights(config: ConfigDict) -> Checkpoint:
    """Load the CLIP that `config.weights` names (see `lattec_jax/runtime/weights.py`, also for the
    errors)."""
    with distributed.main_process_first():  # it may have to be converted
        return Checkpoint.load(locate(config.weights))


def make_prompts(config: ConfigDict, dataset: Dataset, weights: Checkpoint) -> ClassPrompts:
    """Tokenize the class-descriptions of the data set for the configured model."""
    return class_prompts(
        dataset.class_synonyms, config.templates, weights.tokenizer, weights.config.text
    )


def open_images(
    config: ConfigDict,
    dataset: Dataset,
    split_name: str,
    weights: Checkpoint,
    uncropped: bool = False,
) -> SplitImages:
    """Open the image caches of a split ("train" or "test"), writing those that are missing;
    `uncropped`: also that of uncropped images, for augmented crops."""
    split: Split = getattr(dataset, split_name)
    max_side = config.image_cache.max_side
    if max_side is None:
        max_side = round(1.5 * max(weights.preprocess.size))
    with distributed.main_process_first():
        caches = open_image_caches(
            split,
            artifacts_dir(config) / "image_caches",
            weights.preprocess,
            max_side if uncropped else None,
            config.image_cache.max_unreadable_fraction,
        )
    labels = None
    if split.labels is not None:
        index_of = {image: index for index, image in enumerate(split.ids)}
        labels = split.labels[[index_of[image] for image in caches.evaluation.ids]]
    return SplitImages(labels, caches.evaluation, caches.training)


def prepare_pseudo_labels(
    config: ConfigDict,
    dataset: Dataset,
    weights: Checkpoint,
    images: SplitImages,
    extractor: FeatureExtractor,
    mesh: Mesh,
) -> PseudoLabels:
    """Return the zero-shot predictions of the frozen model for the un-augmented training images,
    read from disk where they exist."""
    source = pseudo_label_files.provenance(weights.sha256, dataset.class_synonyms, config.templates)
    # Captioning finds the file without these keys; here they detect labels for other images,
    # another preprocessing or another precision.
    source |= {"images": images.fingerprint, "dtype": config.compute.dtype}
    source["model"] = hashlib.sha256(repr(weights.config).encode()).hexdigest()
    path = pseudo_label_files.pseudo_labels_path(config, source)
    found = None
    if distributed.broadcast_from_main(path.exists):
        try:
            advice = "the pseudo-labels are made again"
            found = pseudo_label_files.read(path, images.ids, source, advice)
        except DataError as error:  # images were added, or the file is damaged
            log.warning("%s", error)
    if distributed.all_agree(found is not None) and found is not None:
        return found
    params = sharding.shard_params(weights.params, mesh)
    features = extractor.encode_images(params, images.eval_cache.pixels, progress="pseudo-labels")
    classes = extractor.encode_classes(params, make_prompts(config, dataset, weights))
    probabilities = class_probabilities(features @ classes.T, float(weights.params["logit_scale"]))
    best = np.sort(probabilities, axis=1)[:, -2:]
    with distributed.main_process_first():
        if distributed.is_main_process():
            labels, margins = probabilities.argmax(axis=1), best[:, 1] - best[:, 0]
            pseudo_label_files.write(path, images.ids, labels, best[:, 1], margins, source)
        return pseudo_label_files.read(path, images.ids, source)


def load_descriptions(
    config: ConfigDict,
    arguments: str,
    dataset: Dataset,
    images: SplitImages,
    pseudo_labels: PseudoLabels,
    kinds: tuple[str, ...],
    describe: Describe,
) -> Descriptions:
    """Read the generated texts of the training images.

    Args:
        arguments, describe: see `prepare_inputs`.
        images: of the training split.
        pseudo_labels: of these images; some prompts contain them.
        kinds: of text that the method mixes, besides the class-description.

    Raises:
        DataError: a kind is missing and its engine is not cheap, or too many texts are missing.
    """
    paths = {kind: description_files.descriptions_path(config, kind) for kind in kinds}

    # Lazy: it reads all image files, which is wasted if descriptions are missing.
    @functools.cache
    def contents() -> dict[str, str]:
        hashes = content_hashes(dataset.train.paths, content_path(config))
        return dict(zip(dataset.train.ids, hashes, strict=True))

    if config.descriptions.engine in CHEAP_ENGINES and distributed.is_main_process():
        describe(config, kinds, Sources(dataset, contents(), pseudo_labels))
    remedy = f" with: python -m captioning.describe {arguments}"
    if config.descriptions.engine.startswith("function-"):
        remedy = ": return a text for each image, and call adapt again"
    missing = [kind for kind, path in paths.items() if not path.exists()]
    if missing:
        raise DataError(
            f"no descriptions of kind {' and '.join(missing)} for {config.dataset.name} (looked "
            f"for {', '.join(str(paths[kind]) for kind in missing)}). Make them{remedy}, "
            "or write them with a captioner of your own (docs/descriptions.md). To train on the "
            "class names alone, set --config.method.texts='(\"class\",)'"
        )
    names = [dataset.class_names[label] for label in pseudo_labels.labels.tolist()]
    prompts = config.descriptions.prompts
    expected = Expected(
        [contents()[image] for image in images.ids],
        {kind: [description_prompt(prompts[kind], name) for name in names] for kind in kinds},
    )
    found = description_files.read(list(paths.values()), kinds, images.ids, expected)
    _check_missing(config, found, paths, len(images.ids), remedy)
    if config.descriptions.shuffle:
        found = description_files.shuffled(found, config.seed)
    return found


def _check_missing(
    config: ConfigDict, found: Descriptions, paths: dict[str, Path], total: int, remedy: str
) -> None:
    """Log what was found. Raise DataError if too many images lack a description."""
    for note in found.notes:
        log.warning("descriptions: %s", note)
    for kind, counts in found.counts.items():
        log.info("%s descriptions: %s", kind, counts)
        fraction = counts["missing"] / total
        if fraction > config.descriptions.max_missing_fraction:
            raise DataError(
                f"{counts['missing']} of {total} images have no {kind} description in "
                f"{paths[kind]} ({fraction:.1%}; {counts['empty']} are empty, {counts['changed']} "
                f"of images that have changed, {counts['other_prompt']} for another prompt); "
                f"config.descriptions.max_missing_fraction allows "
                f"{config.descriptions.max_missing_fraction:.1%}. Finish them{remedy}"
            )
