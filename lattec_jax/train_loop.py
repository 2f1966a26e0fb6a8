"""The run of `python -m lattec_jax.train`, from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from lattec_jax import check_data
from lattec_jax.inference.feature_extractor import compute_dtype
from lattec_jax.methods import make_method
from lattec_jax.methods.base import Method, TrainingSetFeatures
from lattec_jax.models.clip import Params, define
from lattec_jax.models.run_artifacts import ClassWeights
from lattec_jax.reporting import health, report_data, results
from lattec_jax.reporting.results import class_weights, evaluate
from lattec_jax.runtime import distributed, run_directory, sharding
from lattec_jax.runtime.config import to_json
from lattec_jax.runtime.errors import DataError, TrainingError
from lattec_jax.runtime.files import remove_abandoned, write_json
from lattec_jax.runtime.preemption import PreemptionHandler
from lattec_jax.runtime.profiling import Profile
from lattec_jax.runtime.safe_read import read_json
from lattec_jax.runtime.text import print_escaped
from lattec_jax.training import input_pipeline, prepare, wise_ft
from lattec_jax.training.augmentation import Augmentation
from lattec_jax.training.batches import prefetch, steps_per_epoch
from lattec_jax.training.checkpoints import Checkpoints
from lattec_jax.training.metrics_log import NoLog, RunLog
from lattec_jax.training.state import (
    TrainState,
    init_state,
    learning_rate_schedule,
    make_optimizer,
    replace_method,
    replicate,
)
from lattec_jax.training.step import StepSettings, make_train_step
from lattec_jax.training.step_timer import StepTimer


def train(config: ConfigDict, directory: Path, arguments: str) -> dict[str, Any]:
    """Run, or continue, one adaptation and return what `results.json` holds.

    Args:
        config: a resolved configuration.
        directory: the work directory.
        arguments: the command line's `--config...` arguments, for commands in messages.
    """
    distributed.check_same_on_all(to_json(config), Path(config.artifacts))
    with distributed.raise_on_all():
        run_directory.check_available(directory, config)
        method = make_method(config.method)
        dataset = check_data.check(config)

    # ---------------------------------------------------------------- data and the stages before
    mesh = sharding.make_mesh(config.compute.fsdp)
    inputs = prepare.prepare_inputs(config, dataset, arguments, method, mesh)
    batch_size = input_pipeline.choose_batch_size(config, len(inputs.images.ids), mesh)
    with distributed.raise_on_all():
        run_directory.check_same_inputs(
            directory, record := results.input_fingerprints(inputs, batch_size)
        )
    finished = directory / run_directory.RESULTS
    if distributed.broadcast_from_main(finished.exists):
        return show_finished(directory)
    steps = total_steps(config, method, len(inputs.images.ids), batch_size)
    batches, texts, present = input_pipeline.make_batches(
        config, inputs, method, batch_size, steps, mesh
    )

    # ----------------------------------------------------------------------- model and optimizer
    frozen = encode_frozen(inputs, method, mesh)
    optimizer = make_optimizer(config.train, steps)
    params, first = first_state(inputs, method, frozen.classes, mesh)
    state = init_state(params, optimizer, first, mesh, method.trainable, config.seed)
    del params, first  # the devices need not hold the model twice
    num_microbatches = input_pipeline.choose_num_microbatches(config, batch_size, mesh)
    step_function = compile_step(config, inputs, method, optimizer, steps, num_microbatches, mesh)
    reference = results.zero_shot_baseline(inputs, frozen.classes, batch_size)

    # ------------------------------------------------------------------------------------- train
    with distributed.main_process_first():
        (run_directory.acquire if distributed.is_main_process() else run_directory.join)(
            directory, config, record
        )
    if distributed.broadcast_from_main(finished.exists):  # another process was faster
        return show_finished(directory)
    with Checkpoints(directory / run_directory.CHECKPOINTS, config.max_checkpoints) as checkpoints:
        state, timing = checkpoints.restore(state, mesh)
        start = int(state.step)
        if start:
            print(f"continuing at step {start} of {steps}")
        timer = StepTimer(batch_size, **timing)
        device_data = input_pipeline.make_device_data(
            config, inputs, method, texts, present, frozen.training, mesh
        )
        cache = input_pipeline.training_cache(inputs.images)
        stream = input_pipeline.device_batches(batches, cache, device_data, start, steps, mesh)
        log = (RunLog if distributed.is_main_process() else NoLog)(
            directory, start, steps, batch_size
        )
        with (
            log as run_log,
            PreemptionHandler(distributed.SignalAgreement()) as signals,
            Profile(config.profile, start, steps) as profile,
        ):
            watch = health.HealthMonitor(
                reference, run_log.lines(), print_alarms=distributed.is_main_process()
            )
            for done, (host, batch) in enumerate(prefetch(stream), start + 1):
                if (done - 1) % batches.steps_per_epoch == 0:
                    state = begin_epoch(inputs, method, state, frozen.training, mesh)
                state, metrics = step_function(state, device_data, batch, host.text_lengths)
                timer.step(state)
                profile.step(done, state)
                run_log.advance()
                ending = signals.requested()
                due = done % config.checkpoint_every == 0 or done == steps
                logged = {}
                if done % config.log_every == 0 or due or ending:
                    computed = jax.device_get(metrics)
                    last = (watch.last_finite_step, checkpoints.latest)
                    stop_unless_finite(computed, done, *last)
                    if done % config.log_every == 0 or due:  # whenever a signal came
                        logged |= computed | watch.prototype_metrics(
                            method.prototypes(state.method)
                        )
                if config.eval_every and done % config.eval_every == 0:
                    vectors = class_weights(inputs, method, state)
                    found = evaluate(inputs, state.params, vectors, frozen.test)
                    logged |= results.test_metrics(inputs, found)
                if logged:
                    run_log.write(done, logged)
                    watch.update(done, logged)
                if due or ending:
                    # A checkpoint's steps are on disk before it is complete.
                    checkpoints.save(state, done, timer.record(), before=run_log.flush)
                if ending:
                    break
            timing = timer.record()

        # ------------------------------------- results, while the last checkpoint is written
        outcome = conclude(config, inputs, method, state, frozen, mesh)
    # The order of the files at the end: model, class vectors and report data, which a run that is
    # killed writes again; then the results, with which it counts as finished; then the page, which
    # `show_finished` makes of them where it is missing.
    with distributed.main_process_first():
        if not distributed.is_main_process():
            return read_json(finished)
        vectors, predictions = outcome.vectors, outcome.predictions
        results.save_adapted_model(directory, inputs, method, outcome.params, vectors)
        found = {
            **results.run_settings(config, inputs, method),
            "steps": steps,
            "batch_size": batch_size,
            **results.compare_accuracies(inputs, *outcome.compared),
            "label_free": results.label_free_metrics(inputs, predictions, frozen.classes, vectors),
            "health": health.health_report(
                reference, vectors.adapted, predictions, run_log.lines()
            ),
            "train_seconds": timing["seconds"],
            "images_per_second": timer.rate(),
        }
        report_data.save(directory, outcome.shown)
        write_json(finished, found)
        print_escaped(f"{found['table']}\n{found['health']['verdict']}\nresults in {finished}")
        report_data.write_page(directory)
    return found


class Outcome(NamedTuple):
    """The adapted model and what it says of a run's inputs, on the host."""

    params: Mapping[str, np.ndarray]
    vectors: ClassWeights
    compared: tuple[dict[str, Any], dict[str, Any]]  # the frozen model's scores, and its own
    predictions: Int[np.ndarray, " N"]  # for the training images
    shown: dict[str, Any]  # by the report


def conclude(
    config: ConfigDict,
    inputs: prepare.Inputs,
    method: Method,
    state: TrainState,
    frozen: Frozen,
    mesh: Mesh,
) -> Outcome:
    """Examine the last state, or its average with the first one (WiSE-FT)."""
    if config.wise_ft not in (None, 1):
        params, first = first_state(inputs, method, frozen.classes, mesh)
        state = wise_ft.average(method, params, first, state, config.wise_ft)
    vectors = class_weights(inputs, method, state)
    before = results.evaluate_test_scores(inputs, frozen.test @ frozen.classes.T)
    after = evaluate(inputs, state.params, vectors, frozen.test)
    predictions = after["predictions"]  # of the training images, where there are no others
    if inputs.test:
        predictions = results.predict_training_images(
            inputs, state.params, vectors, frozen.training
        )
    template, compared = config.templates[0], (before, after)
    both = (frozen.classes, vectors.adapted)
    shown = report_data.collect(inputs, method, state, template, both, compared, predictions)
    return Outcome(distributed.fetch(state.params), vectors, compared, predictions, shown)


def show_finished(directory: Path) -> dict[str, Any]:
    """Return what the `results.json` of a finished run holds, and print its table.

    A run that was killed before it had written the page gets it now.

    Raises:
        DataError: the results are damaged.
    """
    path = directory / run_directory.RESULTS
    try:
        found = read_json(path)
        table = found["table"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected the results of a finished run, but it is damaged ({error}). Move it "
            "away: the same command then makes it again from the last checkpoint"
        ) from error
    print_escaped(f"{directory} holds a finished run\n{table}")
    if distributed.is_main_process():
        remove_abandoned(directory)
        if not (directory / run_directory.REPORT).exists():
            report_data.write_page(directory)
    return found


class Frozen(NamedTuple):
    """Unit features of the pre-trained model."""

    classes: Float[np.ndarray, "C D"]
    training: Float[np.ndarray, "N D"] | None  # only for a method that requires them
    test: Float[np.ndarray, "T D"]  # of the training images where there are no test images


def encode_frozen(inputs: prepare.Inputs, method: Method, mesh: Mesh) -> Frozen:
    """What the pre-trained model, which leaves the devices again, says of a run's inputs."""
    params = sharding.put(mesh, inputs.weights.params)
    return Frozen(
        inputs.extractor.classes(params, inputs.prompts),
        input_pipeline.frozen_features(inputs, method, params),
        results.encode_test_images(inputs, params),
    )


def first_state(
    inputs: prepare.Inputs, method: Method, classes: Float[np.ndarray, "C D"], mesh: Mesh
) -> tuple[Params, Any]:
    """The parameters and the method's state that training starts from: those of the pre-trained
    model, whose class features are `classes`, or those of `config.init`."""
    start, count = inputs.warm_start, len(inputs.images.ids)
    params = sharding.put(mesh, inputs.weights.params if start is None else start.params)
    if start is not None:
        classes = inputs.extractor.classes(params, inputs.prompts)
    first = method.init(jnp.asarray(classes), count)
    if start is not None and start.prototypes is not None:
        first = method.start_from(first, jnp.asarray(start.prototypes))
    return params, replicate(first, mesh)


def begin_epoch(
    inputs: prepare.Inputs,
    method: Method,
    state: TrainState,
    frozen: np.ndarray | None,
    mesh: Mesh,
) -> TrainState:
    """Let the method look at all training images; most methods do not."""
    params, extractor = state.params, inputs.extractor
    survey = TrainingSetFeatures(
        images=lambda: extractor.images(params, inputs.images.evaluation.pixels, "epoch"),
        classes=lambda: extractor.classes(params, inputs.prompts),
        frozen=frozen,
    )
    new = method.begin_epoch(state.method, survey)
    return state if new is state.method else replace_method(state, new, mesh)


def stop_unless_finite(
    metrics: Mapping[str, float], step: int, last: int, saved: int | None
) -> None:
    """Raise TrainingError for a loss or gradient that is not finite, before anything of it is
    saved. (Such a gradient may have a finite loss: that of the parameters before it.)

    Args:
        metrics: of the step.
        step: that they are of.
        last: the last step whose loss was seen to be finite; 0: none.
        saved: the newest checkpoint.
    """
    for name in ("loss", "gradient_norm"):
        value = metrics[name]
        if math.isfinite(value):
            continue
        seen = f"the loss of step {last} was finite" if last else "no finite loss was seen before"
        raise TrainingError(
            f"the {name.replace('_', ' ')} is {value} at step {step}; expected a finite "
            f"number. It went wrong in steps {last + 1} to {step} ({seen}). Lower "
            "--config.train.learning_rate (in another --workdir). "
            + (f"The checkpoint of step {saved} is kept" if saved else "No checkpoint was saved")
        )


def total_steps(config: ConfigDict, method: Method, images: int, batch_size: int) -> int:
    """min(max_steps, epochs); none for a method that does not train."""
    if not method.trains:
        return 0
    epochs, bound = config.train.epochs, method.max_epochs(images)
    if bound is not None:
        epochs = min(epochs, bound)
    per_epoch = steps_per_epoch(images, batch_size, config.train.epoch_batch_multiple)
    return min(config.train.max_steps, epochs * per_epoch)


def compile_step(
    config: ConfigDict,
    inputs: prepare.Inputs,
    method: Method,
    optimizer: optax.GradientTransformation,
    steps: int,
    num_microbatches: int,
    mesh: Mesh,
) -> Callable:
    """The train step for this configuration, compiled at its first call."""
    preprocess = inputs.weights.preprocess
    settings = StepSettings(
        image_size=preprocess.size,
        mean=preprocess.mean,
        std=preprocess.std,
        augmentation=Augmentation.from_config(config.augment) if method.augments else None,
        num_microbatches=num_microbatches,
    )
    definition = define(
        inputs.weights.config,
        dtype=compute_dtype(config),
        remat=config.compute.remat,
        mesh=mesh,
    )
    schedule = learning_rate_schedule(config.train, steps)
    return make_train_step(definition, method, optimizer, schedule, settings, mesh)
