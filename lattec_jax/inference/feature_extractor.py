"""Features of whole sets of images and texts, and class scores from them."""

from __future__ import annotations

import functools

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.bucketing import round_up
from lattec_jax.data.text.prompts import ClassPrompts
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.clip import Params, bind, define
from lattec_jax.runtime import compilation_cache, distributed, sharding

DTYPES = {"float32": np.dtype("float32"), "bfloat16": jax.numpy.bfloat16.dtype}


def compute_dtype(config: ConfigDict) -> np.dtype:
    """The type in which the towers compute."""
    return DTYPES[config.compute.dtype]


def make_feature_extractor(config: ConfigDict, weights: Checkpoint, mesh: Mesh) -> FeatureExtractor:
    """FeatureExtractor of whole sets for the configured model."""
    definition = define(weights.config, dtype=compute_dtype(config), mesh=mesh)
    return FeatureExtractor(definition, weights.preprocess, mesh, config.compute.eval_batch_size)


class FeatureExtractor:
    """Both towers of one model, compiled once, for any number of images and texts.

    Args:
        definition: of the model (`lattec_jax.models.clip.define`).
        preprocess: mean and deviation of its input.
        mesh: the devices that share a batch.
        batch_size: images or texts per call, rounded up to a multiple of the devices.
    """

    def __init__(
        self, definition: nnx.GraphDef, preprocess: Preprocess, mesh: Mesh, batch_size: int
    ):
        self._mesh = mesh
        self._batch_size = round_up(batch_size, mesh.size)
        mean, std = tuple(preprocess.mean), tuple(preprocess.std)
        self._images, self._texts = _jitted(definition, mean, std, mesh, distributed.count() > 1)

    def images(
        self, params: Params, pixels: UInt8[np.ndarray, "N S T 3"], progress: str | None = None
    ) -> Float[np.ndarray, "N D"]:
        """Unit features of evaluation pixels; `progress` names a bar with rate and time left."""
        return self._encode(self._images, params, pixels, progress)

    def texts(self, params: Params, tokens: Int[np.ndarray, "N L"]) -> Float[np.ndarray, "N D"]:
        """Unit features of token matrices."""
        return self._encode(self._texts, params, tokens, None)

    def classes(self, params: Params, prompts: ClassPrompts) -> Float[np.ndarray, "C D"]:
        """The zero-shot classifier: the mean of each class's unit features, a unit vector again.

        Source: open_clip 3.3, `zero_shot_classifier.build_zero_shot_classifier`.
        """
        features = self.texts(params, prompts.tokens)
        count = len(prompts.first)
        if len(features) == count:  # one description each: nothing to average
            return features
        sums = np.zeros((count, features.shape[1]), features.dtype)
        np.add.at(sums, prompts.classes, features)
        means = sums / np.bincount(prompts.classes)[:, None].astype(sums.dtype)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def _encode(
        self, encode: jax.stages.Wrapped, params: Params, rows: np.ndarray, progress: str | None
    ) -> np.ndarray:
        if len(rows) == 0:
            raise ValueError("nothing to encode")
        # A set smaller than the batch makes the batch its own size.
        size = min(self._batch_size, round_up(len(rows), self._mesh.size))
        own = sharding.process_local_indices(self._mesh, size)
        silent = progress is None or not distributed.is_main_process()
        features = []
        with tqdm(total=len(rows), desc=progress, unit="image", disable=silent, leave=False) as bar:
            for start in range(0, len(rows), size):
                count = min(size, len(rows) - start)
                # The last batch is filled up, so that nothing is compiled again.
                batch = _read(rows, np.where(own < count, start + own, start))
                # Not fetched here: the next batch is sent while this one is computed.
                with jax.default_matmul_precision("highest"):  # float32 is float32 everywhere
                    encoded = encode(params, sharding.place_process_local(self._mesh, size, batch))
                features.append(encoded[:count])
                if len(features) > 2:
                    features[-3] = np.asarray(features[-3])
                bar.update(count)
        return np.concatenate([np.asarray(f) for f in features])


@functools.lru_cache(maxsize=32)
def _jitted(
    definition: nnx.GraphDef,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mesh: Mesh,
    everywhere: bool,
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """The image and the text tower, compiled once for all `FeatureExtractor` of one architecture,
    such as those of a run and of the evaluation after it. Parameters are arguments and are not
    kept.

    Several processes get all features each (`everywhere`); one process fetches them from its
    devices, where they are computed.
    """
    shift, divisor = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    settings = {
        "out_shardings": sharding.replicated(mesh) if everywhere else None,
        "compiler_options": compilation_cache.options(mesh),
    }
    images = jax.jit(
        lambda params, pixels: bind(definition, params).encode_image(
            (pixels / 255 - shift) / divisor
        ),
        **settings,
    )
    texts = jax.jit(lambda params, tokens: bind(definition, params).encode_text(tokens), **settings)
    return images, texts


def _read(rows: np.ndarray, wanted: Int[np.ndarray, " n"]) -> np.ndarray:
    """Some rows; without a copy where they follow each other."""
    if np.all(np.diff(wanted) == 1):
        return np.asarray(rows[wanted[0] : wanted[-1] + 1])
    return np.asarray(rows[wanted])


def class_probabilities(
    cosines: Float[np.ndarray, "N C"], log_scale: float
) -> Float[np.ndarray, "N C"]:
    """Softmax over classes of the scaled cosines: the scores that predictions state."""
    logits = np.exp(log_scale) * cosines
    logits -= logits.max(axis=1, keepdims=True)
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True)
