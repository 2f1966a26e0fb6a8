"""Where training starts: at the pre-trained model, or at what `config.init` names.

`config.weights` stays the frozen reference whatever the start is: it gives the pseudo-labels, the
zero-shot metrics and the tokenizer. The start gives the parameters that training begins with, and
the prototypes, where it has class vectors of the same classes; otherwise they begin as the
class-descriptions encoded with the start's parameters.

`config.init` is one of

    runs/mine-latteclip-s0                     the work directory of a finished run
    runs/mine-latteclip-s0/checkpoints/400     a step that a run saved, finished or not
    any form of config.weights                 lattec_jax/runtime/weights.py; no class vectors
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
from lattec_jax.models import run_artifacts
from lattec_jax.models.checkpoint import Checkpoint, check_shapes, expected_shapes, shapes_of
from lattec_jax.models.tensor_files import refuse_not_finite
from lattec_jax.runtime import run_directory
from lattec_jax.runtime.config import of_run
from lattec_jax.runtime.errors import ConfigError, WeightsError
from lattec_jax.runtime.text import print_escaped
from lattec_jax.runtime.weights import locate
from lattec_jax.training import checkpoints


class WarmStart(NamedTuple):
    """The parameters that training begins with."""

    params: dict[str, np.ndarray]
    prototypes: Float[np.ndarray, "C D"] | None  # None: there are none for these classes
    sha256: str  # of both


def load(config: ConfigDict, weights: Checkpoint, class_names: Sequence[str]) -> WarmStart | None:
    """Read `config.init`; None where it is empty and training starts at `config.weights`.

    Args:
        config: a resolved configuration.
        weights: of `config.weights`.
        class_names: of the data set.

    Raises:
        ConfigError, WeightsError: there is nothing to start from, or it is another architecture,
            tokenizer or preprocessing than that of `config.weights`.
    """
    if not config.init:
        return None
    path = Path(config.init)
    names: list[str] | None = None
    vectors = None
    if path.parent.name == run_directory.CHECKPOINTS and path.name.isdigit():
        checkpoint, vectors = _read_step(path)
        names = checkpoint.source["class_names"]
    elif any((path / name).exists() for name in (run_directory.INPUTS, run_directory.CLASSIFIER)):
        checkpoint, class_weights = _read_run(path)
        vectors, names = class_weights.adapted, checkpoint.source["class_names"]
    else:
        checkpoint = _read_weights(config.init)
    _refuse_other_model(config, checkpoint, weights)
    if vectors is not None and names != list(class_names):
        print_escaped(
            f"{path} has other classes: its parameters are taken, and the prototypes start from "
            "the class-descriptions"
        )
        vectors = None
    digest = hashlib.sha256(checkpoint.sha256.encode())
    if vectors is not None:
        digest.update(np.ascontiguousarray(vectors, np.float32).tobytes())
    return WarmStart(checkpoint.params, vectors, digest.hexdigest())


def _read_run(directory: Path) -> tuple[Checkpoint, run_artifacts.ClassWeights]:
    try:
        return run_artifacts.load(directory)
    except WeightsError as error:
        raise WeightsError(
            f"config.init: {error}. To start from a step that it saved, name "
            f"{directory / run_directory.CHECKPOINTS}/STEP"
        ) from error


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
    """The model of a saved step, and its method's class vectors if it has any of its own."""
    directory = path.parent.parent
    if not path.is_dir():
        saved = sorted(int(p.name) for p in path.parent.glob("[0-9]*") if p.name.isdigit())
        raise WeightsError(
            f"config.init: no step {path.name} in {path.parent}; saved there: "
            f"{', '.join(map(str, saved)) or 'none'}"
        )
    if reason := checkpoints.damage(path):
        raise WeightsError(
            f"config.init: the checkpoint {path} cannot be used: {reason}; name another step of "
            f"{path.parent}"
        )
    config = of_run(directory / run_directory.CONFIG)
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
    source = {
        **pretrained.source,
        "class_names": class_names,
    }
    checkpoint = Checkpoint(
        pretrained.config, params, pretrained.tokenizer, pretrained.preprocess, source
    )
    method = make_method(config.method)
    shape = (len(source["class_names"]), pretrained.config.embed_dim)
    state = _with_leaves(method.init(jnp.zeros(shape), 0), tree["method"])
    vectors = method.class_weights(state, lambda: None)
    if vectors is None:
        return checkpoint, None
    refuse_not_finite({"prototypes": np.asarray(vectors)}, str(path))
    return checkpoint, np.asarray(vectors)


def _with_leaves(state: Any, saved: dict[str, Any]) -> Any:
    """A method's state with the arrays that were saved of it."""

    def key(path: tuple) -> str:
        return jax.tree_util.keystr(path, simple=True, separator="/")

    found = {key(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    return jax.tree_util.tree_map_with_path(lambda path, _: found[key(path)], state)


def _refuse_other_model(config: ConfigDict, found: Checkpoint, expected: Checkpoint) -> None:
    """Raise WeightsError unless both are the same but for their parameters."""
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
