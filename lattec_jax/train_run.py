"""A run of training before its first step: inputs, number of steps, initial parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from lattec_jax import check_data
from lattec_jax.methods import make_method
from lattec_jax.methods.base import EpochMethod, Method, PrototypeMethod
from lattec_jax.models.clip import Params
from lattec_jax.reporting import results
from lattec_jax.reporting.health_metrics import Baseline
from lattec_jax.runtime import distributed, run_directory, sharding
from lattec_jax.runtime.config import to_json
from lattec_jax.training import input_pipeline, prepare
from lattec_jax.training.batches import steps_per_epoch
from lattec_jax.training.state import replicate
from lattec_jax.training.step_memory import StepPlan, step_plans
from lattec_jax.training.trackers import check_installed


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One adaptation: what is trained, on what, and for how long."""

    config: ConfigDict  # validated
    directory: Path
    method: Method
    mesh: Mesh
    inputs: prepare.Inputs
    fingerprints: dict[str, Any]  # of the inputs, as in `inputs.json`
    batch_size: int
    step_plans: tuple[StepPlan, ...]  # that may fit into memory, the preferred one first
    steps: int

    @property
    def results_path(self) -> Path:
        """The file that marks the run as finished."""
        return self.directory / run_directory.RESULTS

    def is_finished(self) -> bool:
        """Return whether the run has its results; the same on all processes."""
        return distributed.broadcast_from_main(self.results_path.exists)

    def should_save(self, step: int) -> bool:
        """Return whether a checkpoint is saved after a step, whatever signals come."""
        return step % self.config.checkpoint_every == 0 or step == self.steps

    def should_log(self, step: int) -> bool:
        """Return whether the metrics of a step are logged."""
        return step % self.config.log_every == 0 or self.should_save(step)


class PretrainedFeatures(NamedTuple):
    """Unit features of the pre-trained model, and the baseline that they give, on the host."""

    classes: Float[np.ndarray, "C D"]
    training: Float[np.ndarray, "N D"] | None  # only for a method that requires them
    test: Float[np.ndarray, "T D"]  # of the training images where there are no test images
    baseline: Baseline


def prepare_run(
    config: ConfigDict, directory: Path, arguments: str, describe: prepare.Describe
) -> Run:
    """Make or read all inputs, and refuse a work directory that belongs to another run."""
    distributed.check_same_on_all(to_json(config), Path(config.artifacts))
    with distributed.raise_on_all():
        run_directory.check_available(directory, config)
        check_installed(config.trackers)
        method = make_method(config.method)
        dataset = check_data.check(config)
    mesh = sharding.make_mesh(config.compute.fsdp)
    inputs = prepare.prepare_inputs(config, dataset, arguments, method, mesh, describe)
    num_images = len(inputs.train.ids)
    unreadable = len(dataset.train.ids) - num_images
    if unreadable and distributed.is_main_process():
        print(f"training on {num_images:,} images; {unreadable:,} cannot be read")
    batch_size = input_pipeline.choose_batch_size(config, num_images, mesh)
    with distributed.raise_on_all():
        fingerprints = results.input_fingerprints(inputs, batch_size)
        run_directory.check_same_inputs(directory, fingerprints)
    return Run(
        config=config,
        directory=directory,
        method=method,
        mesh=mesh,
        inputs=inputs,
        fingerprints=fingerprints,
        batch_size=batch_size,
        step_plans=step_plans(config, batch_size, mesh),
        steps=total_steps(config, method, num_images, batch_size),
    )


def encode_pretrained(run: Run) -> PretrainedFeatures:
    """Encode the inputs with the pre-trained model, and free its parameters on the devices."""
    inputs, extractor, training = run.inputs, run.inputs.extractor, None
    params = sharding.shard_params(inputs.weights.params, run.mesh)
    classes = extractor.encode_classes(params, inputs.prompts)
    if "pretrained_features" in run.method.requires:
        pixels = inputs.train.eval_cache.pixels
        training = extractor.encode_images(params, pixels, "features of the pre-trained model")
    counts = inputs.descriptions.counts if inputs.descriptions else {}
    images = len(inputs.train.ids)
    baseline = Baseline(
        inputs.dataset.class_names,
        classes,
        inputs.pseudo_labels.labels,
        run.batch_size,
        {kind: counted["found"] / images for kind, counted in counts.items()},
    )
    test = results.encode_test_images(inputs, params)
    return PretrainedFeatures(classes, training, test, baseline)


def initial_params_and_state(run: Run, pretrained: PretrainedFeatures) -> tuple[Params, Any]:
    """Return the parameters and the method's state that training starts from: those of the
    pre-trained model, or those of `config.init`."""
    inputs, method, start = run.inputs, run.method, run.inputs.warm_start
    params = sharding.shard_params(
        inputs.weights.params if start is None else start.params, run.mesh
    )
    classes = pretrained.classes
    if start is not None:
        classes = inputs.extractor.encode_classes(params, inputs.prompts)
    state = method.init(jnp.asarray(classes), len(inputs.train.ids))
    if start is not None and start.prototypes is not None and isinstance(method, PrototypeMethod):
        state = method.start_from(state, jnp.asarray(start.prototypes))
    return params, replicate(state, run.mesh)


def total_steps(config: ConfigDict, method: Method, num_images: int, batch_size: int) -> int:
    """Return min(max_steps, the steps of all epochs); 0 for a method that does not train."""
    if not method.trains:
        return 0
    epochs = config.train.epochs
    if isinstance(method, EpochMethod) and (bound := method.max_epochs(num_images)) is not None:
        epochs = min(epochs, bound)
    per_epoch = steps_per_epoch(num_images, batch_size, config.train.epoch_batch_multiple)
    return min(config.train.max_steps, epochs * per_epoch)
