"""The saved classifier of a finished run: adapted model and class weights.

Imports no JAX, so that an export needs none.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.tensor_files import read_safetensors
from lattec_jax.runtime.errors import ConfigError, WeightsError, did_you_mean, short_repr
from lattec_jax.runtime.run_directory import CLASSIFIER, CONFIG, MODEL, read_inputs
from lattec_jax.runtime.weights import locate


class ZeroShotHeads(NamedTuple):
    """The class weights of a zero-shot head, one unit vector per class.

    Some methods have a second head, on features of the pre-trained model.
    """

    adapted: Float[np.ndarray, "C D"]
    pretrained: Float[np.ndarray, "C D"] | None = None

    def cosines(
        self, adapted: Float[np.ndarray, "N D"], pretrained: Float[np.ndarray, "N D"] | None
    ) -> Float[np.ndarray, "N C"]:
        """Return cosine similarities of images and classes, averaged over the heads.

        The arguments are image features of both models; the second is unused with a single head.
        """
        cosines = adapted @ self.adapted.T  # [N, D] @ [D, C]
        if self.pretrained is None:
            return cosines
        assert pretrained is not None
        return 0.5 * (cosines + pretrained @ self.pretrained.T)


def check_finished(workdir: Path) -> None:
    """Raise ConfigError if the directory does not exist, WeightsError if it has no classifier."""
    if not workdir.is_dir():
        near = [path.name for path in workdir.parent.glob("*") if path.is_dir()]
        raise ConfigError(
            f"no directory {workdir}; expected the work directory of a finished run of "
            "python -m lattec_jax.train or adapt, or what Classifier.save wrote. "
            f"{did_you_mean(workdir.name, near, workdir.parent)}".rstrip()
        )
    if not (workdir / CLASSIFIER).exists():
        found = "the run there has not finished; repeat its command to continue it"
        if not (workdir / CONFIG).exists():
            found = (
                "expected the work directory of a finished run of python -m lattec_jax.train or "
                f"adapt, but there is no {CONFIG} either"
            )
        raise WeightsError(f"no {CLASSIFIER} in {workdir}: {found}")


def load(workdir: Path) -> tuple[Checkpoint, ZeroShotHeads]:
    """Read the files that `results.save_adapted_model` wrote.

    Raises:
        ConfigError: the directory does not exist.
        WeightsError: the run has not finished, or one of its files is missing or damaged.
    """
    check_finished(workdir)
    path = workdir / CLASSIFIER
    arrays = read_safetensors(path)
    checkpoint = Checkpoint.load(workdir / MODEL)
    names = checkpoint.source.get("class_names", [])
    if not isinstance(names, list):
        raise WeightsError(
            f"{workdir / MODEL}: expected a list of class names, found {short_repr(names)}; "
            "restore the run's own files"
        )
    expected = (len(names), checkpoint.config.embed_dim)
    found = {name: array.shape for name, array in arrays.items()}
    if "classifier" not in found or set(found.values()) != {expected}:
        raise WeightsError(
            f"{path}: expected class weights of the shape {expected}, one per class of "
            f"{workdir / MODEL}, found {found}; restore the run's own files"
        )
    other = [name for name, array in arrays.items() if array.dtype != np.float32]
    if other:
        raise WeightsError(
            f"{path}: expected finite numbers in float32, found another type in "
            f"{', '.join(other[:5])}; restore the run's own files"
        )
    return checkpoint, ZeroShotHeads(arrays["classifier"], arrays.get("frozen_class_weights"))


def load_pretrained(config: ConfigDict, workdir: Path) -> Checkpoint:
    """Load the pre-trained model from which a run started; WeightsError if it has changed."""
    needed = f"the pre-trained model of the run in {workdir} is needed here"
    try:
        weights = Checkpoint.load(locate(config.weights))
    except WeightsError as error:
        raise WeightsError(f"{needed}; restore its weights. {error}") from error
    expected = read_inputs(workdir).get("weights_sha256")
    if weights.sha256 != expected:
        raise WeightsError(
            f"{needed}: expected weights with the SHA-256 {expected}, found {weights.sha256} at "
            f"{config.weights}; restore the weights from which the run started"
        )
    return weights
