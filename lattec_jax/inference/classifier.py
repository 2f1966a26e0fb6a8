"""A finished run as an image classifier; `python -m lattec_jax.predict` uses it.

from lattec_jax import Classifier

classifier = Classifier.load("runs/mine-latteclip-s0")
classifier.predict("image.jpg").name
classifier.predict(["a.jpg", Image.open("b.png"), array], top_k=3)
classifier.predict("new/*.jpg")
for found in classifier.stream(million_paths, on_error="record"): ...
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from PIL import Image

from lattec_jax.data.images.preprocess import (
    Preprocess,
    UnreadableImage,
    image_errors,
    open_image,
)
from lattec_jax.data.images.sources import ImageLike, files_at, image_or_path, is_collection
from lattec_jax.data.prefetch import prefetch
from lattec_jax.data.text.bucketing import round_up
from lattec_jax.inference.feature_extractor import (
    DTYPES,
    FeatureExtractor,
    class_probabilities,
    compute_dtype,
)
from lattec_jax.inference.saved_run import copy_run, show_report
from lattec_jax.models import run_artifacts
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.clip import define
from lattec_jax.models.run_artifacts import ZeroShotHeads
from lattec_jax.runtime import run_directory, sharding
from lattec_jax.runtime.config import load_run_config
from lattec_jax.runtime.errors import ConfigError, DataError

BATCH_SIZE = 256  # for a model without a configuration
Decoded = UInt8[np.ndarray, "S T 3"] | UnreadableImage
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The k most probable classes of one image, in descending order."""

    image: str | None  # the path as it was given; None for an image that was given as pixels
    labels: tuple[int, ...]  # [k] indices into `Classifier.class_names`
    names: tuple[str, ...]  # [k] class names
    scores: tuple[float, ...]  # [k] softmax over all classes, with the model's logit scale
    # [D] unit vector of the adapted model, if requested
    embedding: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    error: str | None = None  # why the image cannot be read; then the other fields are empty

    @property
    def label(self) -> int:
        """The most probable class. Raises DataError for an unreadable image."""
        return self._first(self.labels)

    @property
    def name(self) -> str:
        """The name of the most probable class. Raises DataError for an unreadable image."""
        return self._first(self.names)

    @property
    def score(self) -> float:
        """The score of the most probable class. Raises DataError for an unreadable image."""
        return self._first(self.scores)

    def _first(self, values: tuple[T, ...]) -> T:
        if self.error is not None:
            raise DataError(f"there is no prediction for {self.image}: {self.error}")
        return values[0]


class Classifier:
    """An adapted CLIP and its class weights, compiled for one batch size."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        heads: ZeroShotHeads,
        *,
        pretrained: Checkpoint | None = None,
        dtype: np.dtype = DTYPES["float32"],
        mesh: Mesh | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Place a model on the devices. To load a run from disk, use `load`.

        Args:
            checkpoint: the adapted model, with its class names.
            pretrained: the pre-trained model, required if `heads` has class weights for it.
            mesh: default: all devices, each with a full copy of the model.
            batch_size: number of images that are encoded at once.
        """
        self.class_names: tuple[str, ...] = tuple(checkpoint.source["class_names"])
        self.preprocess: Preprocess = checkpoint.preprocess
        mesh = mesh or sharding.make_mesh()
        self.batch_size = round_up(batch_size, mesh.size)
        self._log_logit_scale = float(checkpoint.params["logit_scale"])
        self._heads = heads
        definition = define(checkpoint.config, dtype=dtype, mesh=mesh)
        self._extractor = FeatureExtractor(definition, checkpoint.preprocess, mesh, self.batch_size)
        self._params = sharding.shard_params(checkpoint.params, mesh)
        self._pretrained_params = None
        if heads.pretrained is not None:
            if pretrained is None:
                raise ConfigError("`pretrained` is missing, which these class weights need as well")
            self._pretrained_params = sharding.shard_params(pretrained.params, mesh)
        self.directory: Path | None = None  # the run that it was loaded from
        arrays = b"".join(array.tobytes() for array in heads if array is not None)
        self.identity: dict[str, Any] = {  # all that predictions depend on; JSON values
            "model_sha256": checkpoint.sha256,
            "classifier_sha256": hashlib.sha256(arrays).hexdigest(),
            "class_names": list(self.class_names),
            "preprocess": json.loads(json.dumps(checkpoint.preprocess.to_dict())),
            "dtype": str(np.dtype(dtype)),
        }

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Classifier:
        """Load the work directory of a finished run.

        Only `model/` and `classifier.safetensors` are required, so that they can be copied; an
        existing `config.json` sets the precision, the batch size and the devices. A run that
        classifies with two models (ReCLIP) also needs `config.json`, `inputs.json` and the
        pre-trained weights.

        Raises:
            ConfigError: the directory does not exist.
            WeightsError: it contains no finished run, or a file is missing or damaged.
        """
        directory = Path(directory)
        checkpoint, heads = run_artifacts.load(directory)
        path = directory / run_directory.CONFIG
        config = load_run_config(path) if path.exists() or heads.pretrained is not None else None
        settings: dict[str, Any] = {}
        if config is not None:
            settings = {
                "dtype": compute_dtype(config),
                "mesh": sharding.fitting_mesh(config.compute.fsdp),
                "batch_size": config.compute.eval_batch_size,
            }
            if heads.pretrained is not None:
                settings["pretrained"] = run_artifacts.load_pretrained(config, directory)
        classifier = cls(checkpoint, heads, **settings)
        classifier.directory = directory
        return classifier

    def __repr__(self) -> str:
        """Show the number of classes and the run."""
        where = f", {self.directory}" if self.directory else ""
        return f"{type(self).__name__}({len(self.class_names)} classes{where})"

    def report(self) -> Path:
        """Print the table of the run, and return the path of its report page.

        Raises:
            DataError: the classifier was not loaded from a run that still has its results.
        """
        return show_report(self._loaded_from())

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Copy the classifier to a new directory, without checkpoints.

        `load` and every command that takes the work directory of a finished run read the copy.

        Raises:
            ConfigError: the directory exists and is not empty, or cannot be written.
            DataError: the classifier was not loaded from a directory.
        """
        target = Path(directory).expanduser()
        copy_run(self._loaded_from(), target)
        return target

    def _loaded_from(self) -> Path:
        if self.directory is None:
            raise DataError(
                "this classifier was not loaded from a directory; use Classifier.load(DIR)"
            )
        return self.directory

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        top_k: int = 1,
        embeddings: bool = False,
        on_error: str = "raise",
    ) -> Prediction | list[Prediction]:
        """Classify one image, or several.

        Args:
            images: one image or an iterable of them. An image is a path, a PIL image, or an
                array: `[H, W, 3]` uint8 in RGB or `[H, W]` uint8 in grayscale. A folder or a
                pattern such as "new/*.jpg" stands for its images in alphabetical order.
            top_k: number of classes to return, at most all of them.
            embeddings: also return the image features.
            on_error: "raise", or "record": an unreadable image gets a `Prediction` whose `error`
                states the reason.

        Returns:
            A `Prediction` for one image; for several, a list in the order of the images.

        Raises:
            UnreadableImage: with `on_error="raise"`; names the file.
            DataError: an object that is not an image, whatever `on_error` is; a folder or pattern
                without images.
            ConfigError: an invalid `on_error`, or a `top_k` below 1.
        """
        if isinstance(images, (str, os.PathLike)):
            single = not is_collection(images)
        else:
            single = isinstance(images, Image.Image) or (
                isinstance(images, np.ndarray) and images.ndim < 4
            )
        many: Iterable[Any] = [images] if single else images  # pyright: ignore[reportAssignmentType]
        found = list(self.stream(many, top_k=top_k, embeddings=embeddings, on_error=on_error))
        return found[0] if single else found

    def stream(
        self,
        images: str | os.PathLike[str] | Iterable[ImageLike],
        *,
        top_k: int = 1,
        embeddings: bool = False,
        on_error: str = "raise",
    ) -> Iterator[Prediction]:
        """Like `predict`, for any number of images: results are yielded as they are computed.

        Threads decode the next batches while the device computes. `images` is consumed in order, at
        most a few batches ahead; a folder or a pattern is listed at once.
        """
        if isinstance(images, (str, os.PathLike)):
            images = files_at(images) if is_collection(images) else [images]
        if on_error not in ("raise", "record"):
            raise ConfigError(f"on_error: expected 'raise' or 'record', found {on_error!r}")
        if top_k < 1:
            raise ConfigError(f"top_k: expected at least 1, found {top_k}")
        return self._stream(images, min(top_k, len(self.class_names)), embeddings, on_error)

    def _stream(
        self, images: Iterable[ImageLike], top_k: int, embeddings: bool, on_error: str
    ) -> Iterator[Prediction]:
        size = 0

        def decode(item: tuple[int, ImageLike]) -> tuple[str | None, Decoded]:
            position, image = item
            name = os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else None
            return name, _decode(image, position, self.preprocess)

        with closing(prefetch(decode, enumerate(images), ahead=2 * self.batch_size)) as decoded:
            while batch := list(islice(decoded, self.batch_size)):
                unreadable = [item for _, item in batch if isinstance(item, UnreadableImage)]
                if unreadable and on_error == "raise":
                    raise unreadable[0]
                pixels = [item for _, item in batch if isinstance(item, np.ndarray)]
                results = iter(())
                if pixels:
                    # Rounded up to a power of two, so that few batch sizes are ever compiled.
                    size = max(size, min(self.batch_size, 1 << (len(pixels) - 1).bit_length()))
                    results = zip(*self._score(np.stack(pixels), size), strict=True)
                for name, item in batch:
                    if isinstance(item, UnreadableImage):
                        yield Prediction(name, (), (), (), error=item.reason)
                        continue
                    features, scores = next(results)
                    best = np.argsort(-scores, kind="stable")[:top_k]
                    yield Prediction(
                        name,
                        tuple(best.tolist()),
                        tuple(self.class_names[c] for c in best),
                        tuple(float(scores[c]) for c in best),
                        features.copy() if embeddings else None,
                    )

    def _score(
        self, pixels: UInt8[np.ndarray, "N S T 3"], size: int
    ) -> tuple[Float[np.ndarray, "N D"], Float[np.ndarray, "N C"]]:
        """Return features of the adapted model, and scores.

        Batches are padded to `size`, which only grows in a stream, so that the last batch is not
        compiled separately.
        """
        count = len(pixels)
        padded = np.concatenate([pixels, np.repeat(pixels[:1], size - count, axis=0)])
        encode = self._extractor.encode_images
        features = encode(self._params, padded)[:count]
        pretrained_features = None
        if self._pretrained_params is not None:
            pretrained_features = encode(self._pretrained_params, padded)[:count]
        cosines = self._heads.cosines(features, pretrained_features)
        return features, class_probabilities(cosines, self._log_logit_scale)


def _decode(item: ImageLike, position: int, preprocess: Preprocess) -> Decoded:
    """Return the evaluation pixels of one image. Raises DataError for another object."""
    image = image_or_path(item, position)
    where = f"image {position}" if isinstance(image, Image.Image) else image
    try:
        with image_errors(where):
            image = image if isinstance(image, Image.Image) else open_image(image)
            if 0 in image.size:
                raise ValueError(f"a side of length 0 (width, height: {image.size})")
            return preprocess.pixels(image)
    except UnreadableImage as error:
        return error
