"""The stages before training: each is a file on disk, made where that is cheap.

Image caches and pseudo-labels are made when they are missing, and so are descriptions by an engine
that looks at pixels only. Descriptions by a language model take hours on a GPU: their absence is an
error that names the command.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lattec_jax.data import descriptions as description_files
from lattec_jax.data import pseudo_labels as pseudo_label_files
from lattec_jax.data.datasets import remove_leftovers
from lattec_jax.data.datasets.dataset import Dataset, Split
from lattec_jax.data.descriptions import Descriptions, Expected
from lattec_jax.data.images.content_hashes import content_hashes, content_path
from lattec_jax.data.images.image_cache import ImageCache, make_image_caches, open_image_cache
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
CHEAP_ENGINES = ("pixels",)


@dataclasses.dataclass(frozen=True)
class SplitImages:
    """The readable images of a split, row for row."""

    ids: tuple[str, ...]
    labels: np.ndarray | None  # [N] int32; None where unknown
    evaluation: ImageCache
    training: ImageCache | None  # None where nothing is augmented
    fingerprint: str  # of the files and how they are read

    @property
    def unreadable(self) -> list[str]:
        """Ids of the images that were left out."""
        return [entry["image"] for entry in self.evaluation.failed]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """All that training starts from."""

    dataset: Dataset
    weights: Checkpoint
    extractor: FeatureExtractor
    images: SplitImages  # for training
    test: SplitImages | None
    zero_shot: PseudoLabels
    texts: Descriptions | None  # None for a method that uses none
    prompts: ClassPrompts
    warm_start: WarmStart | None  # None: training starts at `weights`


def prepare_inputs(
    config: ConfigDict, dataset: Dataset, arguments: str, method: Method, mesh: Mesh
) -> Inputs:
    """Read what there is and make the cheap stages that are missing: of several processes the first
    makes files, and all compute.

    Args:
        config: a resolved configuration.
        dataset: that it describes; images that are not on disk yet are written.
        arguments: the command line's `--config...` arguments, for the commands in messages.
        method: says what it requires.
        mesh: the devices that make pseudo-labels.

    Raises:
        DataError: the method requires descriptions or labels that are not there.
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
    images = open_images(config, dataset, "train", weights, method.trains and method.augments)
    test = open_images(config, dataset, "test", weights) if dataset.test else None
    prompts = make_prompts(config, dataset, weights)
    zero_shot = pseudo_labels(config, dataset, weights, images, extractor, mesh)
    texts = None
    if "descriptions" in method.requires:
        with distributed.main_process_first():
            texts = descriptions(
                config, arguments, dataset, images, zero_shot, method.description_kinds
            )
    return Inputs(dataset, weights, extractor, images, test, zero_shot, texts, prompts, start)


def load_weights(config: ConfigDict) -> Checkpoint:
    """The CLIP that `config.weights` names (`lattec_jax/runtime/weights.py` says how).

    Raises:
        ConfigError: no weights are named.
        WeightsError: there is no usable checkpoint at that place.
    """
    with distributed.main_process_first():  # it may have to be converted
        return Checkpoint.load(locate(config.weights))


def max_training_side(config: ConfigDict, weights: Checkpoint) -> int:
    """The bound on the long side of training images, in pixels; 0 for none."""
    if config.image_cache.max_side is not None:
        return config.image_cache.max_side
    return round(1.5 * max(weights.preprocess.size))


def make_prompts(config: ConfigDict, dataset: Dataset, weights: Checkpoint) -> ClassPrompts:
    """The class-descriptions of the data set for the configured model."""
    return class_prompts(dataset.names, config.templates, weights.tokenizer, weights.config.text)


def open_images(
    config: ConfigDict, dataset: Dataset, part: str, weights: Checkpoint, training: bool = False
) -> SplitImages:
    """Make the image caches of the split `part` ("train" or "test") where they are missing, open
    them; `training`: that of whole images, for augmented crops, too."""
    split: Split = getattr(dataset, part)
    with distributed.main_process_first():
        paths = make_image_caches(
            split,
            artifacts_dir(config) / "image_caches",
            weights.preprocess,
            max_training_side(config, weights) if training else None,
            config.image_cache.max_unreadable_fraction,
        )
        evaluation = open_image_cache(paths.evaluation)
        whole = open_image_cache(paths.training) if paths.training else None
    labels = None
    if split.labels is not None:
        row = {image: index for index, image in enumerate(split.ids)}
        labels = split.labels[[row[image] for image in evaluation.ids]]
    return SplitImages(evaluation.ids, labels, evaluation, whole, paths.evaluation.name)


def pseudo_labels(
    config: ConfigDict,
    dataset: Dataset,
    weights: Checkpoint,
    images: SplitImages,
    extractor: FeatureExtractor,
    mesh: Mesh,
) -> PseudoLabels:
    """Zero-shot predictions of the frozen model for the un-augmented training images."""
    source = pseudo_label_files.provenance(weights.sha256, dataset.names, config.templates)
    # The captioning stage finds the file without these; here they tell labels of other images, of
    # another preprocessing or precision.
    source |= {"images": images.fingerprint, "dtype": config.compute.dtype}
    source["model"] = hashlib.sha256(repr(weights.config).encode()).hexdigest()
    path = pseudo_label_files.pseudo_labels_path(config, source)
    found = None
    if distributed.broadcast_from_main(path.exists):
        try:
            found = pseudo_label_files.read(path, images.ids, source)
        except DataError as error:  # images were added, or the file is damaged
            log.warning("making the pseudo-labels again: %s", error)
    if distributed.all_agree(found is not None):
        return found
    params = sharding.put(mesh, weights.params)
    features = extractor.images(params, images.evaluation.pixels, progress="pseudo-labels")
    classes = extractor.classes(params, make_prompts(config, dataset, weights))
    probabilities = class_probabilities(features @ classes.T, float(weights.params["logit_scale"]))
    best = np.sort(probabilities, axis=1)[:, -2:]
    with distributed.main_process_first():
        if distributed.is_main_process():
            pseudo_label_files.write(
                path,
                images.ids,
                probabilities.argmax(axis=1),
                best[:, 1],
                best[:, 1] - best[:, 0],
                source,
            )
        return pseudo_label_files.read(path, images.ids, source)


def descriptions(
    config: ConfigDict,
    arguments: str,
    dataset: Dataset,
    images: SplitImages,
    zero_shot: PseudoLabels,
    kinds: tuple[str, ...],
) -> Descriptions:
    """The generated texts of the training images.

    Args:
        config: a resolved configuration.
        arguments: the command line's `--config...` arguments, for the command in messages.
        dataset: that the images belong to.
        images: for training.
        zero_shot: their labels, which stand in some prompts.
        kinds: of text that the method mixes, beside the class-description.

    Raises:
        DataError: a kind is missing and its engine is not cheap.
    """
    paths = {kind: description_files.descriptions_path(config, kind) for kind in kinds}
    if config.descriptions.engine in CHEAP_ENGINES and distributed.is_main_process():
        from captioning.describe import describe  # no torch behind a cheap engine

        describe(config, kinds)
    command = f"python -m captioning.describe {arguments}"
    missing = [kind for kind, path in paths.items() if not path.exists()]
    if missing:
        raise DataError(
            f"no descriptions of kind {' and '.join(missing)} for {config.dataset.name} (looked "
            f"for {', '.join(str(paths[kind]) for kind in missing)}). Make them with: {command}, "
            'or write them with a captioner of your own (README, "Descriptions"). To train on the '
            "class names alone, set --config.method.texts='(\"class\",)'"
        )
    expected = _expected(config, dataset, images, zero_shot, kinds)
    found = description_files.read(list(paths.values()), kinds, images.ids, expected)
    for note in found.notes:
        log.warning("descriptions: %s", note)
    for kind, counts in found.counts.items():
        fraction = counts["missing"] / len(images.ids)
        log.info("%s descriptions: %s", kind, counts)
        if fraction > config.descriptions.max_missing_fraction:
            raise DataError(
                f"{counts['missing']} of {len(images.ids)} images have no {kind} description in "
                f"{paths[kind]} ({fraction:.1%}; {counts['empty']} are empty, {counts['changed']} "
                f"of images that have changed, {counts['other_prompt']} for another prompt); "
                f"config.descriptions.max_missing_fraction allows "
                f"{config.descriptions.max_missing_fraction:.1%}. Finish them with: {command}"
            )
    if config.descriptions.shuffle:
        found = description_files.shuffled(found, config.seed)
    return found


def _expected(
    config: ConfigDict,
    dataset: Dataset,
    images: SplitImages,
    zero_shot: PseudoLabels,
    kinds: tuple[str, ...],
) -> Expected:
    """What the images and prompts are now."""
    path_of = dict(zip(dataset.train.ids, dataset.train.paths, strict=True))
    contents = content_hashes([path_of[image] for image in images.ids], content_path(config))
    names = [dataset.class_names[label] for label in zero_shot.labels.tolist()]
    return Expected(
        contents,
        {k: [description_prompt(config.descriptions.prompts[k], n) for n in names] for k in kinds},
    )
