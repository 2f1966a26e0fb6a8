"""Extract features of any number of images and texts, and compute class probabilities."""

from __future__ import annotations

import functools

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.bucketing import round_up
from lattec_jax.data.text.prompts import ClassPrompts
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.clip import Params, bind, define
from lattec_jax.runtime import compilation_cache, distributed, sharding
from lattec_jax.runtime.progress import progress_bar

DTYPES = {"float32": np.dtype("float32"), "bfloat16": jax.numpy.bfloat16.dtype}


def compute_dtype(config: ConfigDict) -> np.dtype:
    """Return the compute type of the towers."""
    return DTYPES[config.compute.dtype]


def make_feature_extractor(config: ConfigDict, weights: Checkpoint, mesh: Mesh) -> FeatureExtractor:
    """Return the feature extractor of the configured model."""
    definition = define(weights.config, dtype=compute_dtype(config), mesh=mesh)
    return FeatureExtractor(definition, weights.preprocess, mesh, config.compute.eval_batch_size)


class FeatureExtractor:
    """Both towers of a model, jitted, for any number of images and texts.

    The batch size, in images or texts, is rounded up to a multiple of the number of devices.
    """

    def __init__(
        self, definition: nnx.GraphDef, preprocess: Preprocess, mesh: Mesh, batch_size: int
    ):
        self._mesh = mesh
        self._batch_size = round_up(batch_size, mesh.size)
        mean, std = tuple(preprocess.mean), tuple(preprocess.std)
        self._images, self._texts = _jitted(definition, mean, std, mesh, distributed.count() > 1)

    def encode_images(
        self, params: Params, pixels: UInt8[np.ndarray, "N S T 3"], progress: str | None = None
    ) -> Float[np.ndarray, "N D"]:
        """Return unit features of evaluation pixels; `progress` is the title of a progress bar."""
        return self._encode(self._images, params, pixels, progress)

    def encode_texts(
        self, params: Params, tokens: Int[np.ndarray, "N L"]
    ) -> Float[np.ndarray, "N D"]:
        """Return unit features of texts."""
        return self._encode(self._texts, params, tokens, None)

    def encode_classes(self, params: Params, prompts: ClassPrompts) -> Float[np.ndarray, "C D"]:
        """Return the class weights of the zero-shot classifier: for each class the normalized mean
        of the unit features of its descriptions.

        Source: open_clip 3.3, `zero_shot_classifier.build_zero_shot_classifier`.
        """
        features = self.encode_texts(params, prompts.tokens)
        count = len(prompts.first)
        if len(features) == count:  # one description per class: nothing to average
            return features
        sums = np.zeros((count, features.shape[1]), features.dtype)
        np.add.at(sums, prompts.classes, features)
        means = sums / np.bincount(prompts.classes)[:, None].astype(sums.dtype)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def _encode(
        self, encode: jax.stages.Wrapped, params: Params, inputs: np.ndarray, progress: str | None
    ) -> np.ndarray:
        total = len(inputs)
        if total == 0:
            raise ValueError("nothing to encode")
        size = min(self._batch_size, round_up(total, self._mesh.size))
        local = sharding.process_local_indices(self._mesh, size)
        silent = progress is None or not distributed.is_main_process()
        features = []
        with progress_bar(
            total=total, desc=progress or "", unit="image", disable=silent, leave=False
        ) as bar:
            for start in range(0, total, size):
                count = min(size, total - start)
                # The last batch is padded with its first entry, so that nothing is compiled again.
                batch = _take(inputs, np.where(local < count, start + local, start))
                # Fetched two batches later: the next batch is sent while this one is computed.
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
    replicate: bool,
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """Return the jitted image and text tower. They are cached, so that all feature extractors of
    one architecture share the compiled programs; parameters are arguments.

    With several processes, features are replicated (`replicate`), because a process can only fetch
    from its own devices. A single process leaves them where they are computed.
    """
    shift, divisor = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    settings = {
        "out_shardings": sharding.replicated(mesh) if replicate else None,
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


def _take(array: np.ndarray, indices: Int[np.ndarray, " n"]) -> np.ndarray:
    """Return `array[indices]`, without a copy if the indices are consecutive."""
    if np.all(np.diff(indices) == 1):
        return np.asarray(array[indices[0] : indices[-1] + 1])
    return np.asarray(array[indices])


def class_probabilities(
    cosines: Float[np.ndarray, "N C"], log_logit_scale: float
) -> Float[np.ndarray, "N C"]:
    """Return the softmax over classes of the scaled cosine similarities."""
    logits = np.exp(log_logit_scale) * cosines
    logits -= logits.max(axis=1, keepdims=True)
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True)
