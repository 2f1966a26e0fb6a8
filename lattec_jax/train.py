"""Adapt a CLIP to a domain.

    python -m lattec_jax.train --config=configs/demo.py [--workdir=DIR] [--config.key=value ...]

The work directory (default `runs/<dataset>-<method>-s<seed>`) belongs to one run: the same command
continues it. Missing stores and pseudo-labels are made; missing descriptions by a language model
are an error that names the command that makes them.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lattec_jax import feed, results, sharding, stages, workdir
from lattec_jax.augment import Augmentation
from lattec_jax.checkpoints import Checkpoints
from lattec_jax.config import command, default_workdir, parse
from lattec_jax.data.batches import prefetch
from lattec_jax.errors import ConfigError, TrainingError
from lattec_jax.files import write_json
from lattec_jax.methods import make_method
from lattec_jax.methods.base import Method
from lattec_jax.models.clip import define
from lattec_jax.results import classifier, examine
from lattec_jax.run_log import RunLog
from lattec_jax.state import init_state, learning_rate_schedule, make_optimiser
from lattec_jax.step import StepSettings, make_train_step


def train(config: ConfigDict, directory: Path, arguments: str) -> dict[str, Any]:
    """Run, or continue, one adaptation and return what `results.json` holds.

    Args:
        config: a resolved configuration.
        directory: the work directory.
        arguments: the command line's `--config...` arguments, for commands in messages.
    """
    workdir.check(directory, config)
    check_numbers(config)
    Augmentation.from_config(config.augment)  # a mistake shows before the long stages

    # ---------------------------------------------------------------- data and the stages before
    method = make_method(config.method)
    mesh = sharding.make_mesh(config.compute.fsdp)
    inputs = stages.gather(config, arguments, method, mesh)
    batch_size = feed.choose_batch_size(config, len(inputs.pictures.ids), mesh)
    workdir.check_inputs(directory, record := results.record_inputs(inputs, batch_size))
    finished = directory / workdir.RESULTS
    if finished.exists():
        found = json.loads(finished.read_text(encoding="utf-8"))
        print(f"{directory} holds a finished run\n{found['table']}")
        return found
    batches, texts, present = feed.make_batches(config, inputs, method, batch_size, mesh)

    # ----------------------------------------------------------------------- model and optimiser
    params = sharding.put(mesh, inputs.weights.params)
    class_features = inputs.encoders.classes(params, inputs.prompts)  # [C, D], pre-trained
    steps = total_steps(config, method, batches.steps_per_epoch)
    optimiser = make_optimiser(config.train, steps)
    method_state = method.init(jnp.asarray(class_features))
    state = init_state(params, optimiser, method_state, mesh, config.seed)
    pieces = feed.choose_pieces(config, batch_size, mesh)
    step_function = compile_step(config, inputs, method, optimiser, steps, pieces, mesh)
    before = examine(inputs, params, class_features)

    # ------------------------------------------------------------------------------------- train
    workdir.claim(directory, config, record)
    clock = Clock()
    with Checkpoints(directory / workdir.CHECKPOINTS, config.keep_checkpoints) as checkpoints:
        start = 0
        if checkpoints.latest is not None:
            state = checkpoints.restore(state, mesh)
            start = int(state.step)
            print(f"continuing at step {start} of {steps}")
        with RunLog(directory, start, steps, batch_size) as run_log:
            tables = feed.make_tables(config, inputs, method, texts, present, mesh)
            stream = feed.device_batches(batches, inputs.pictures, tables, start, steps, mesh)
            for done, (host, batch) in enumerate(prefetch(stream), start + 1):
                state, figures = step_function(state, tables, batch, host.text_lengths)
                if done == start + 1:
                    jax.block_until_ready(state)
                    clock.compiled()
                run_log.advance()
                saving = done % config.checkpoint_every == 0 or done == steps
                logged = {}
                if done % config.log_every == 0 or saving:
                    logged |= jax.device_get(figures)
                    stop_unless_finite(logged["loss"], done, checkpoints.latest)
                if config.eval_every and done % config.eval_every == 0:
                    found = examine(inputs, state.params, classifier(inputs, method, state))
                    logged |= results.test_figures(inputs, found)
                if logged:
                    run_log.write(done, logged)
                if saving:
                    checkpoints.save(state, done)
            jax.block_until_ready(state)
            clock.stop((steps - start - 1) * batch_size)

    # ----------------------------------------------------------------------------------- results
    final = classifier(inputs, method, state)
    after = examine(inputs, state.params, final)
    results.save_adapted(directory, inputs, method, jax.device_get(state.params), final)
    found = {
        **results.describe_run(config, inputs, method),
        "steps": steps,
        "batch_size": batch_size,
        **results.compare(inputs, before, after),
        "label_free": results.label_free(inputs, state.params, class_features, final),
        "train_seconds": clock.seconds,
        "images_per_second": clock.rate,
    }
    write_json(finished, found)
    print(f"{found['table']}\nresults in {finished}")
    return found


def check_numbers(config: ConfigDict) -> None:
    """Raise ConfigError for an interval that is none, or a seed that random generators refuse."""
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"config.seed: expected 0 to {2**32 - 1}, found {config.seed}")
    for key, least in (("log_every", 1), ("checkpoint_every", 1), ("eval_every", 0)):
        if config[key] < least:
            raise ConfigError(f"config.{key}: expected at least {least} steps, found {config[key]}")


def stop_unless_finite(loss: float, step: int, saved: int | None) -> None:
    """Raise TrainingError for a loss that is not finite, before anything of it is saved."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} at step {step}; expected a finite number. Lower "
            "--config.train.learning_rate (in another --workdir). "
            + (f"The checkpoint of step {saved} is kept" if saved else "No checkpoint was saved")
        )


def total_steps(config: ConfigDict, method: Method, steps_per_epoch: int) -> int:
    """min(max_steps, epochs); none for a method that does not train."""
    if not method.trains:
        return 0
    return min(config.train.max_steps, config.train.epochs * steps_per_epoch)


def compile_step(
    config: ConfigDict,
    inputs: stages.Inputs,
    method: Method,
    optimiser: optax.GradientTransformation,
    steps: int,
    pieces: int,
    mesh: Mesh,
) -> Callable:
    """The train step for this configuration, compiled at its first call."""
    preprocess = inputs.weights.preprocess
    settings = StepSettings(
        image_size=preprocess.size,
        mean=preprocess.mean,
        std=preprocess.std,
        augmentation=Augmentation.from_config(config.augment),
        pieces=pieces,
    )
    definition = define(
        inputs.weights.config, dtype=stages.compute_dtype(config), remat=config.compute.remat
    )
    schedule = learning_rate_schedule(config.train, steps)
    return make_train_step(definition, method, optimiser, schedule, settings, mesh)


class Clock:
    """Seconds of training, and images per second without the first step, which compiles."""

    def __init__(self) -> None:
        self._start = self._compiled = time.perf_counter()
        self.seconds = 0.0
        self.rate: float | None = None

    def compiled(self) -> None:
        """The first step is done."""
        self._compiled = time.perf_counter()

    def stop(self, images: int) -> None:
        """The last step is done; `images` were trained on since the first."""
        now = time.perf_counter()
        self.seconds = now - self._start
        if images > 0:
            self.rate = images / (now - self._compiled)


def main(argv: Sequence[str]) -> None:
    """The command."""

    def define_flags(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", "", "Work directory of the run.", flag_values=values)

    config, values = parse(argv, define_flags)
    directory = Path(values.workdir) if values.workdir else default_workdir(config)
    arguments = shlex.join(a for a in argv[1:] if a.lstrip("-").startswith("config"))
    train(config, directory, arguments)


if __name__ == "__main__":
    command(main)
