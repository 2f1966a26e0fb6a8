"""Initialization of training from the checkpoint that `config.init` names.

`config.weights` is always the frozen reference: it gives the pseudo-labels, the zero-shot metrics
and the tokenizer. The warm start gives the initial parameters, and the initial prototypes where it
has class weights for the same classes; otherwise the prototypes start as the class-descriptions,
encoded with the initial parameters.

`config.init` is one of

    runs/mine-latteclip-s0                     the work directory of a finished run
    runs/mine-latteclip-s0/checkpoints/400     a step that a run saved, finished or not
    any form of config.weights                 lattec_jax/runtime/weights.py; no class weights
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from lattec_jax.methods import make_method
from lattec_jax.methods.base import PrototypeMethod
from lattec_jax.models import run_artifacts
from lattec_jax.models.checkpoint import Checkpoint, check_shapes, expected_shapes, shapes_of
from lattec_jax.models.tensor_files import refuse_not_finite
from lattec_jax.runtime import run_directory
from lattec_jax.runtime.config import load_run_config
from lattec_jax.runtime.errors import ConfigError, WeightsError
from lattec_jax.runtime.text import print_escaped
from lattec_jax.runtime.weights import locate
from lattec_jax.training import checkpoints
from lattec_jax.training.checkpoint_checksums import damage


class WarmStart(NamedTuple):
    """Initial parameters and prototypes."""

    params: dict[str, np.ndarray]
    prototypes: Float[np.ndarray, "C D"] | None  # None: the start has none for these classes
    sha256: str  # of both


def load(config: ConfigDict, weights: Checkpoint, class_names: Sequence[str]) -> WarmStart | None:
    """Read `config.init`; return None where it is empty and training starts at `config.weights`.

    Raises:
        ConfigError: `config.init` names nothing that exists.
        WeightsError: it cannot be read, or differs from `config.weights` in architecture,
            tokenizer or preprocessing.
    """
    if not config.init:
        return None
    path = Path(config.init)
    names: list[str] | None = None
    prototypes = None
    if path.parent.name == run_directory.CHECKPOINTS and path.name.isdigit():
        checkpoint, prototypes = _read_step(path)
        names = checkpoint.source["class_names"]
    elif any((path / name).exists() for name in (run_directory.INPUTS, run_directory.CLASSIFIER)):
        try:
            checkpoint, heads = run_artifacts.load(path)
        except WeightsError as error:
            raise WeightsError(
                f"config.init: {error}. To start from a step that it saved, name "
                f"{path / run_directory.CHECKPOINTS}/STEP"
            ) from error
        prototypes, names = heads.adapted, checkpoint.source["class_names"]
    else:
        checkpoint = _read_weights(config.init)
    _refuse_other_model(config, checkpoint, weights)
    if prototypes is not None and names != list(class_names):
        print_escaped(
            f"{path} has other classes: its parameters are taken, and the prototypes start from "
            "the class-descriptions"
        )
        prototypes = None
    digest = hashlib.sha256(checkpoint.sha256.encode())
    if prototypes is not None:
        digest.update(np.ascontiguousarray(prototypes, np.float32).tobytes())
    return WarmStart(checkpoint.params, prototypes, digest.hexdigest())


def _read_weights(init: str) -> Checkpoint:
    try:
        return Checkpoint.load(locate(init))
    except (ConfigError, WeightsError) as error:
        message = str(error).replace("config.weights", "config.init")
        raise WeightsError(
            f"{message}. config.init also takes the work directory of a run and "
            f"RUN/{run_directory.CHECKPOINTS}/STEP"
        ) from error


def _read_step(path: Path) -> tuple[Checkpoint, Float[np.ndarray, "C D"] | None]:
    """Read the model of a saved step, and the prototypes if its method has any."""
    directory = path.parent.parent
    if not path.is_dir():
        saved = sorted(int(p.name) for p in path.parent.glob("[0-9]*") if p.name.isdigit())
        raise WeightsError(
            f"config.init: no step {path.name} in {path.parent}; saved there: "
            f"{', '.join(map(str, saved)) or 'none'}"
        )
    if reason := damage(path):
        raise WeightsError(
            f"config.init: the checkpoint {path} cannot be used: {reason}; name another step of "
            f"{path.parent}"
        )
    config = load_run_config(directory / run_directory.CONFIG)
    pretrained = run_artifacts.load_pretrained(config, directory)
    class_names = run_directory.read_inputs(directory).get("class_names")
    if class_names is None:
        raise ConfigError(
            f"{directory / run_directory.INPUTS}: class_names is missing; "
            "restore the run's own file"
        )
    tree = checkpoints.read(path.parent, int(path.name))
    params = {name: np.asarray(value, np.float32) for name, value in tree["params"].items()}
    check_shapes(shapes_of(params), expected_shapes(pretrained.config), str(path))
    refuse_not_finite(params, str(path))
    source = {**pretrained.source, "class_names": class_names}
    checkpoint = Checkpoint(
        pretrained.config, params, pretrained.tokenizer, pretrained.preprocess, source
    )
    method = make_method(config.method)
    if not isinstance(method, PrototypeMethod):
        return checkpoint, None
    shape = (len(class_names), pretrained.config.embed_dim)
    state = _with_leaves(method.init(jnp.zeros(shape), 0), tree["method"])
    prototypes = np.asarray(method.prototypes(state))
    refuse_not_finite({"prototypes": prototypes}, str(path))
    return checkpoint, prototypes


def _with_leaves(state: Any, saved: dict[str, Any]) -> Any:
    """Return a method's state with its saved arrays, which Orbax returns in a dictionary."""

    def key(path: tuple) -> str:
        return jax.tree_util.keystr(path, simple=True, separator="/")

    arrays = {key(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[key(path)], state)


def _refuse_other_model(config: ConfigDict, found: Checkpoint, expected: Checkpoint) -> None:
    """Raise WeightsError unless both models differ in their parameters only."""
    tokenizers = (expected.tokenizer, found.tokenizer)
    differing = {
        "architecture": expected.config != found.config,
        "tokenizer": len({(t.to_json(), repr(t.settings())) for t in tokenizers}) > 1,
        "preprocessing": expected.preprocess != found.preprocess,
    }
    names = [name for name, differs in differing.items() if differs]
    if names:
        raise WeightsError(
            f"config.init: {config.init} differs from config.weights, {config.weights}, in "
            f"{' and '.join(names)}; expected two sets of parameters of the same model. Set "
            "config.weights to the model that the start was adapted from"
        )
