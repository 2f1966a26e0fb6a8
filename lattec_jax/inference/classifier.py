"""A finished run as a classifier of images: what `python -m lattec_jax.predict` is built on.

from lattec_jax import Classifier

classifier = Classifier.load("runs/mine-latteclip-s0")
classifier.predict("image.jpg").name
classifier.predict(["a.jpg", Image.open("b.png"), array], top_k=3)
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
from typing import Any

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
from lattec_jax.data.prefetch import prefetch
from lattec_jax.data.text.bucketing import round_up
from lattec_jax.inference.feature_extractor import (
    DTYPES,
    FeatureExtractor,
    class_probabilities,
    compute_dtype,
)
from lattec_jax.models import run_artifacts
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.clip import define
from lattec_jax.models.run_artifacts import ClassWeights
from lattec_jax.runtime import run_directory, sharding
from lattec_jax.runtime.config import of_run
from lattec_jax.runtime.errors import ConfigError, DataError

BATCH_SIZE = 256  # where there is no configuration beside the model
ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was found for one image: the k likeliest classes, the likeliest first."""

    image: str | None  # the path as it was given; None for what was given as pixels
    labels: tuple[int, ...]  # [k] indices into `Classifier.class_names`
    names: tuple[str, ...]  # [k] their names
    scores: tuple[float, ...]  # [k] softmax over all classes, at the model's temperature
    # [D] unit vector of the adapted model, where it was asked for
    embedding: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    error: str | None = None  # why the image cannot be read; then there is nothing else

    @property
    def label(self) -> int:
        """The likeliest class. Raises DataError for an image that could not be read."""
        return self._first(self.labels)

    @property
    def name(self) -> str:
        """Its name. Raises DataError for an image that could not be read."""
        return self._first(self.names)

    @property
    def score(self) -> float:
        """Its score. Raises DataError for an image that could not be read."""
        return self._first(self.scores)

    def _first(self, values: tuple) -> Any:
        if self.error is not None:
            raise DataError(f"there is no prediction for {self.image}: {self.error}")
        return values[0]


class Classifier:
    """An adapted CLIP and its class vectors, compiled for one batch size."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        vectors: ClassWeights,
        *,
        pretrained: Checkpoint | None = None,
        dtype: np.dtype = DTYPES["float32"],
        mesh: Mesh | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Place a model on the devices; `load` is the way from files.

        Args:
            checkpoint: the adapted model, which names its classes.
            vectors: of the classes.
            pretrained: the frozen model, where `vectors` has some for it.
            dtype: in which the image tower computes.
            mesh: the devices; all of them by default, each with the whole model.
            batch_size: images encoded at once.
        """
        self.class_names: tuple[str, ...] = tuple(checkpoint.source["class_names"])
        self.preprocess: Preprocess = checkpoint.preprocess
        self.scale = float(np.exp(checkpoint.params["logit_scale"]))  # inverse temperature
        mesh = mesh or sharding.make_mesh()
        self.batch_size = round_up(batch_size, mesh.size)
        self._log_scale = float(checkpoint.params["logit_scale"])
        self._vectors = vectors
        definition = define(checkpoint.config, dtype=dtype, mesh=mesh)
        self._encoders = FeatureExtractor(definition, checkpoint.preprocess, mesh, self.batch_size)
        self._params = sharding.put(mesh, checkpoint.params)
        self._frozen_params = None
        if vectors.frozen is not None:
            if pretrained is None:
                raise ConfigError("two models classify together here; `pretrained` is missing")
            self._frozen_params = sharding.put(mesh, pretrained.params)
        arrays = b"".join(array.tobytes() for array in vectors if array is not None)
        self.identity: dict[str, Any] = {  # what decides its predictions; JSON values
            "model_sha256": checkpoint.sha256,
            "classifier_sha256": hashlib.sha256(arrays).hexdigest(),
            "class_names": list(self.class_names),
            "preprocess": json.loads(json.dumps(checkpoint.preprocess.to_dict())),
            "dtype": str(np.dtype(dtype)),
        }

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Classifier:
        """Read the work directory of a finished run.

        `model/` and `classifier.safetensors` of it are enough, also elsewhere; `config.json`, where
        it is there, says the precision, batch and devices. A run that classifies by two models
        (ReCLIP) needs it, `inputs.json` and the pre-trained weights as well.

        Raises:
            ConfigError: there is no such directory.
            WeightsError: no finished run in it, or a part of it is missing or damaged.
        """
        directory = Path(directory)
        checkpoint, vectors = run_artifacts.load(directory)
        path = directory / run_directory.CONFIG
        config = of_run(path) if path.exists() or vectors.frozen is not None else None
        if config is None:
            return cls(checkpoint, vectors)
        pretrained = None
        if vectors.frozen is not None:
            pretrained = run_artifacts.load_pretrained(config, directory)
        return cls(
            checkpoint,
            vectors,
            pretrained=pretrained,
            dtype=compute_dtype(config),
            mesh=sharding.fitting_mesh(config.compute.fsdp),
            batch_size=config.compute.eval_batch_size,
        )

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
                array: `[H, W, 3]` uint8 in RGB or `[H, W]` uint8 in gray.
            top_k: how many classes to return; at most all are.
            embeddings: return the image's features, too.
            on_error: "raise", or "record": an image that cannot be read has a `Prediction` whose
                `error` says why.

        Returns:
            A `Prediction` for one image, a list in the order of the images for several.

        Raises:
            UnreadableImage: naming the file, where `on_error` is "raise".
            DataError: what is no image, whatever `on_error` is.
            ConfigError: another `on_error`, or a `top_k` below 1.
        """
        one = isinstance(images, (str, os.PathLike, Image.Image)) or (
            isinstance(images, np.ndarray) and images.ndim < 4
        )
        many = [images] if one else images
        found = list(self.stream(many, top_k=top_k, embeddings=embeddings, on_error=on_error))
        return found[0] if one else found

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        top_k: int = 1,
        embeddings: bool = False,
        on_error: str = "raise",
    ) -> Iterator[Prediction]:
        """`predict` for any number of images: reads `images` as it goes and keeps no result.

        Threads decode the next batches while the device computes. What `images` gives is taken in
        order and not asked for faster than needed.
        """
        if on_error not in ("raise", "record"):
            raise ConfigError(f"on_error: expected 'raise' or 'record', found {on_error!r}")
        if top_k < 1:
            raise ConfigError(f"top_k: expected at least 1, found {top_k}")
        return self._stream(images, min(top_k, len(self.class_names)), embeddings, on_error)

    def _stream(
        self, images: Iterable[ImageLike], top_k: int, embeddings: bool, on_error: str
    ) -> Iterator[Prediction]:
        with closing(self._decoded(images)) as decoded:
            yield from self._predicted(decoded, top_k, embeddings, on_error)

    def _predicted(
        self,
        decoded: Iterator[tuple[str | None, np.ndarray | UnreadableImage]],
        top_k: int,
        embeddings: bool,
        on_error: str,
    ) -> Iterator[Prediction]:
        size = 0
        while batch := list(islice(decoded, self.batch_size)):
            if on_error == "raise":
                for _, pixels in batch:
                    if isinstance(pixels, UnreadableImage):
                        raise pixels
            readable = [pixels for _, pixels in batch if isinstance(pixels, np.ndarray)]
            if readable:
                size = max(size, min(self.batch_size, _power_of_two(len(readable))))
                features, scores = self._score(np.stack(readable), size)
            row = 0
            for name, pixels in batch:
                if isinstance(pixels, UnreadableImage):
                    yield Prediction(name, (), (), (), error=pixels.reason)
                    continue
                yield self._best(name, scores[row], features[row] if embeddings else None, top_k)
                row += 1

    def _best(
        self,
        image: str | None,
        scores: Float[np.ndarray, " C"],
        embedding: Float[np.ndarray, " D"] | None,
        top_k: int,
    ) -> Prediction:
        best = np.argsort(-scores, kind="stable")[:top_k]
        return Prediction(
            image,
            tuple(best.tolist()),
            tuple(self.class_names[c] for c in best),
            tuple(float(scores[c]) for c in best),
            None if embedding is None else embedding.copy(),
        )

    def _score(
        self, pixels: UInt8[np.ndarray, "N S T 3"], size: int
    ) -> tuple[Float[np.ndarray, "N D"], Float[np.ndarray, "N C"]]:
        """Features of the adapted model, and scores.

        Batches are filled up to `size`, which only grows in a stream: nothing is compiled again
        for the last one.
        """
        count = len(pixels)
        filled = np.concatenate([pixels, np.repeat(pixels[:1], size - count, axis=0)])
        features = self._encoders.images(self._params, filled)[:count]
        frozen = None
        if self._frozen_params is not None:
            frozen = self._encoders.images(self._frozen_params, filled)[:count]
        cosines = self._vectors.cosines(features, frozen)
        return features, class_probabilities(cosines, self._log_scale)

    def _decoded(
        self, images: Iterable[ImageLike]
    ) -> Iterator[tuple[str | None, np.ndarray | UnreadableImage]]:
        """The name and evaluation pixels of each image, or why there are none, in order."""

        def decode(item: tuple[int, ImageLike]) -> tuple[str | None, np.ndarray | UnreadableImage]:
            position, image = item
            name = os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else None
            return name, _decode(image, position, self.preprocess)

        return prefetch(decode, enumerate(images), ahead=2 * self.batch_size)


def _decode(
    image: ImageLike, position: int, preprocess: Preprocess
) -> UInt8[np.ndarray, "S T 3"] | UnreadableImage:
    """Evaluation pixels of one image; raises DataError for what is no image."""
    if isinstance(image, np.ndarray):
        gray_or_rgb = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype != np.uint8 or not gray_or_rgb or 0 in image.shape:
            raise DataError(
                f"image {position}: expected an array [H, W, 3] or [H, W] of uint8, found "
                f"{list(image.shape)} of {image.dtype}; scale values to 0 to 255 and convert them"
            )
        image = Image.fromarray(image)
    elif not isinstance(image, (str, os.PathLike, Image.Image)):
        raise DataError(
            f"image {position}: expected a path, a PIL image or a NumPy array, found "
            f"{type(image).__name__}"
        )
    where = f"image {position}" if isinstance(image, Image.Image) else image
    try:
        with image_errors(where):
            image = image if isinstance(image, Image.Image) else open_image(image)
            if 0 in image.size:
                raise ValueError(f"a side of length 0 (width, height: {image.size})")
            return preprocess.pixels(image)
    except UnreadableImage as error:
        return error


def _power_of_two(count: int) -> int:
    """The least power of two that is not smaller: so few sizes are ever compiled."""
    return 1 << (count - 1).bit_length()
