"""The training loop of `python -m lattec_jax.train`, from the inputs to the report."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float
from ml_collections import ConfigDict

from lattec_jax.inference.feature_extractor import compute_dtype
from lattec_jax.methods.base import EpochMethod, PrototypeMethod, TrainingSetFeatures
from lattec_jax.models.clip import define
from lattec_jax.reporting import health, results
from lattec_jax.reporting.health_metrics import prototype_metrics
from lattec_jax.runtime import distributed, run_directory
from lattec_jax.runtime.config import to_json
from lattec_jax.runtime.errors import TrainingError
from lattec_jax.runtime.preemption import PreemptionHandler
from lattec_jax.runtime.profiling import Profile
from lattec_jax.runtime.safe_read import read_json
from lattec_jax.train_results import FitResult, evaluate_adapted, show_finished, write_results
from lattec_jax.train_run import (
    PretrainedFeatures,
    Run,
    encode_pretrained,
    initial_params_and_state,
    prepare_run,
)
from lattec_jax.training import input_pipeline
from lattec_jax.training.augmentation import Augmentation
from lattec_jax.training.batches import Batches
from lattec_jax.training.checkpoints import CheckpointManager
from lattec_jax.training.metrics_log import NoLog, RunLog
from lattec_jax.training.prepare import Describe
from lattec_jax.training.state import (
    TrainState,
    init_state,
    learning_rate_schedule,
    make_optimizer,
    replicate,
)
from lattec_jax.training.step import DeviceData, StepSettings, make_train_step, parameter_norm
from lattec_jax.training.step_memory import (
    AUTO,
    StepOutOfMemory,
    StepPlan,
    compile_step,
    out_of_memory_handled,
)
from lattec_jax.training.step_timer import StepTimer


def train(
    config: ConfigDict, directory: Path, arguments: str, describe: Describe
) -> dict[str, Any]:
    """Run, or continue, one adaptation and return the contents of `results.json`.

    Args:
        config: validated.
        arguments, describe: see `prepare.prepare_inputs`.
    """
    run = prepare_run(config, directory, arguments, describe)
    if run.is_finished():
        return show_finished(directory)
    pretrained = encode_pretrained(run)
    distributed.write_then_read(
        lambda: run_directory.acquire(directory, config, run.fingerprints),
        lambda: run_directory.check_acquired(directory, config, run.fingerprints),
    )
    if run.is_finished():  # by another job, since the first look
        return show_finished(directory)
    with CheckpointManager(
        directory / run_directory.CHECKPOINTS, config.max_checkpoints
    ) as checkpoints:
        result = fit_in_memory(run, pretrained, checkpoints)
        # While the last checkpoint is still being written.
        adapted = evaluate_adapted(run, pretrained, result.state)
    return distributed.write_then_read(
        lambda: write_results(run, pretrained, result, adapted),
        lambda: read_json(run.results_path),
    )


def fit_in_memory(
    run: Run, pretrained: PretrainedFeatures, checkpoints: CheckpointManager
) -> FitResult:
    """`fit`, which is repeated with less memory if a device is out of it."""
    while True:
        try:
            return fit(run, pretrained, checkpoints)
        except StepOutOfMemory as error:
            print(f"{error}; training again from the newest checkpoint, with less memory")
            checkpoints.wait()  # the newest one may still be being written
            run = dataclasses.replace(run, step_plans=error.remaining)


def fit(run: Run, pretrained: PretrainedFeatures, checkpoints: CheckpointManager) -> FitResult:
    """Train from the newest checkpoint to the last step and return the result. After a signal,
    finish and save the current step, then raise Terminated or KeyboardInterrupt."""
    config, method = run.config, run.method
    batches, tokens, present = input_pipeline.make_batches(
        config, run.inputs, method, run.batch_size, run.steps, run.mesh
    )
    schedule = learning_rate_schedule(config.train, run.steps)
    optimizer = make_optimizer(config.train, schedule)
    params, method_state = initial_params_and_state(run, pretrained)
    initial_state = init_state(
        params, optimizer, method_state, run.mesh, method.trainable, config.seed
    )
    state, timing = checkpoints.restore(initial_state, run.mesh)
    del params, method_state, initial_state  # the devices hold the model once
    start, timer = int(state.step), StepTimer(run.batch_size, **timing)
    if start:
        print(f"continuing at step {start} of {run.steps}")
    device_data = input_pipeline.make_device_data(
        config, run.inputs, method, tokens, present, pretrained.training, run.mesh
    )
    cache = run.inputs.train.train_cache
    stream = input_pipeline.device_batches(
        batches, cache, device_data, start, run.steps, run.mesh, run.should_log
    )
    plan, train_step = choose_step(run, optimizer, schedule, batches, state, device_data)
    with (
        out_of_memory_handled(run.step_plans, plan, config.train.microbatch_size == AUTO),
        make_log(run, start) as log,
        PreemptionHandler(distributed.SignalAgreement()) as signals,
        Profile(config.profile, start, run.steps) as profile,
    ):
        monitor = Monitor(run, pretrained, checkpoints, log, timer)
        for step, (host_batch, batch) in enumerate(stream, start + 1):
            if isinstance(method, EpochMethod) and (step - 1) % batches.steps_per_epoch == 0:
                state = begin_epoch(run, method, state, pretrained.training)
            # All inputs of a step are on the devices: an implicit transfer would stall each step.
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, device_data, batch, host_batch.bucket_lengths)
            timer.step(state)
            profile.step(step, state)
            log.advance()
            stopping = signals.requested()
            monitor.after_step(step, state, metrics, stopping)
            if run.should_save(step) or stopping:
                # The log is on disk before the checkpoint is complete, so that a run that continues
                # from this checkpoint misses no line.
                checkpoints.save(state, step, timer.record(), before=log.flush)
            if stopping:
                break
        seconds = timer.record()["seconds"]
    return FitResult(state, log.lines(), seconds, timer.rate())


def choose_step(
    run: Run,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    batches: Batches,
    state: TrainState,
    device_data: DeviceData,
) -> tuple[StepPlan, Callable]:
    """Return the plan of this run whose step fits into memory (`step_memory`), and the step."""
    plans, start = run.step_plans, int(state.step)
    build = functools.partial(build_train_step, run, optimizer, schedule)
    if start < run.steps:
        print("compiling the train step", flush=True)
    if start == run.steps or len(plans) == 1:  # no choice: compiled at the first call, if any
        return plans[0], build(plans[0])
    ((host_batch, batch),) = input_pipeline.device_batches(
        batches, run.inputs.train.train_cache, device_data, start, start + 1, run.mesh
    )
    model, dtype = run.inputs.weights.config, compute_dtype(run.config)
    arguments = (state, device_data, batch, host_batch.bucket_lengths)
    return compile_step(plans, build, model, dtype, run.mesh, arguments)


def build_train_step(
    run: Run, optimizer: optax.GradientTransformation, schedule: optax.Schedule, plan: StepPlan
) -> Callable:
    """Return the train step of this run, which is compiled at its first call."""
    config, preprocess = run.config, run.inputs.weights.preprocess
    settings = StepSettings(
        image_size=preprocess.size,
        mean=preprocess.mean,
        std=preprocess.std,
        augmentation=Augmentation.from_config(config.augment) if run.method.augments else None,
        num_microbatches=plan.num_microbatches,
    )
    model, dtype = run.inputs.weights.config, compute_dtype(config)
    definition = define(model, dtype=dtype, remat=plan.remat, mesh=run.mesh)
    return make_train_step(definition, run.method, optimizer, schedule, settings, run.mesh)


def begin_epoch(
    run: Run, method: EpochMethod, state: TrainState, pretrained: Float[np.ndarray, "N D"] | None
) -> TrainState:
    """Replace the method's state by that of `EpochMethod.begin_epoch`."""
    inputs, params = run.inputs, state.params
    pixels = inputs.train.eval_cache.pixels
    features = TrainingSetFeatures(
        images=lambda: inputs.extractor.encode_images(params, pixels, "epoch"),
        classes=lambda: inputs.extractor.encode_classes(params, inputs.prompts),
        pretrained_features=pretrained,
    )
    method_state = replicate(method.begin_epoch(state.method, features), run.mesh)
    return dataclasses.replace(state, method=method_state)


def make_log(run: Run, start: int) -> RunLog | NoLog:
    """Open the log that the main process writes."""
    if not distributed.is_main_process():
        return NoLog()
    names, config = run.config.trackers, json.loads(to_json(run.config))
    return RunLog(run.directory, start, run.steps, names, config)


class Monitor:
    """Logs metrics, prints alarms, and stops a run that diverges."""

    def __init__(
        self,
        run: Run,
        pretrained: PretrainedFeatures,
        checkpoints: CheckpointManager,
        log: RunLog | NoLog,
        timer: StepTimer,
    ):
        self._run, self._pretrained, self._checkpoints = run, pretrained, checkpoints
        self._log, self._timer = log, timer
        self._watch = health.HealthMonitor(
            pretrained.baseline, log.lines(), print_alarms=distributed.is_main_process()
        )

    def after_step(
        self, step: int, state: TrainState, metrics: Mapping[str, jax.Array], stopping: bool
    ) -> None:
        """Log step `step` (counted from 1) and evaluate, if the configuration says so.
        `stopping`: a signal ends the run after this step."""
        config, method, entry = self._run.config, self._run.method, {}
        due = self._run.should_log(step)
        if due or stopping:
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            last_finite = self._watch.last_finite_step
            stop_unless_finite(values, step, last_finite, self._checkpoints.latest)
            if due:  # a signal alone adds no line, so that the log is that of a run without it
                entry |= values | self._timer.lap_metrics()
                entry["parameter_norm"] = float(parameter_norm(state.params))
                if isinstance(method, PrototypeMethod):
                    prototypes = np.asarray(method.prototypes(state.method))
                    entry |= prototype_metrics(self._pretrained.baseline, prototypes)
        if config.eval_every and step % config.eval_every == 0:
            inputs = self._run.inputs
            heads = results.zero_shot_heads(inputs, method, state)
            found = results.evaluate(inputs, state.params, heads, self._pretrained.test)
            entry |= results.test_metrics(inputs, found)
        if entry:
            self._log.write(step, entry)
            self._watch.update(step, entry)


def stop_unless_finite(
    metrics: Mapping[str, float], step: int, last_finite: int, checkpoint: int | None
) -> None:
    """Raise TrainingError if the loss or the gradient norm is not finite, before the state is
    saved. (The loss is computed before the update, so it may be finite while the gradient is not.)

    Args:
        last_finite: the last step that was logged with a finite loss; 0: none.
        checkpoint: the step of the newest checkpoint.
    """
    for name in ("loss", "gradient_norm"):
        value = metrics[name]
        if math.isfinite(value):
            continue
        seen, kept = "no finite loss was seen before", "No checkpoint was saved"
        if last_finite:
            seen = f"the loss of step {last_finite} was finite"
        if checkpoint:
            kept = f"The checkpoint of step {checkpoint} is kept"
        raise TrainingError(
            f"the {name.replace('_', ' ')} is {value} at step {step}; expected a finite "
            f"number. It went wrong in steps {last_finite + 1} to {step} ({seen}). Lower "
            f"--config.train.learning_rate (in another --workdir). {kept}"
        )
