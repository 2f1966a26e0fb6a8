"""The end of a run of training: evaluation of the adapted model, and all files of the results."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from lattec_jax.models.run_artifacts import ZeroShotHeads
from lattec_jax.reporting import health, report_data, results
from lattec_jax.reporting.alarms import LabeledTest
from lattec_jax.runtime import distributed, run_directory
from lattec_jax.runtime.cli import print_next
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.files import remove_abandoned, write_json
from lattec_jax.runtime.safe_read import read_json
from lattec_jax.runtime.text import print_escaped
from lattec_jax.train_run import PretrainedFeatures, Run, initial_params_and_state
from lattec_jax.training import wise_ft
from lattec_jax.training.state import TrainState


class FitResult(NamedTuple):
    """The result of `train_loop.fit`."""

    state: TrainState  # after the last step
    log: list[dict[str, float | None]]  # all lines of `metrics.jsonl`
    seconds: float
    images_per_second: float | None


class Adapted(NamedTuple):
    """The adapted model and its evaluation, on the host."""

    params: Mapping[str, np.ndarray]
    heads: ZeroShotHeads
    scores: tuple[dict[str, Any], dict[str, Any]]  # before and after
    predictions: Int[np.ndarray, " N"]  # for the training images
    report: dict[str, Any]


def evaluate_adapted(run: Run, pretrained: PretrainedFeatures, state: TrainState) -> Adapted:
    """Evaluate the last state, or its average with the initial one (WiSE-FT)."""
    inputs, method, fraction = run.inputs, run.method, run.config.wise_ft
    if fraction not in (None, 1):
        state = wise_ft.average(method, *initial_params_and_state(run, pretrained), state, fraction)
    heads = results.zero_shot_heads(inputs, method, state)
    scores = pretrained.test @ pretrained.classes.T
    before = results.evaluate_scores(scores, inputs.test_labels)
    after = results.evaluate(inputs, state.params, heads, pretrained.test)
    predictions = after["predictions"]  # for the training images, where no others are evaluated
    if inputs.test:
        predictions = results.predict_training_images(
            inputs, state.params, heads, pretrained.training
        )
    both, template = (pretrained.classes, heads.adapted), run.config.templates[0]
    report = report_data.collect(
        inputs, method, state, template, both, (before, after), predictions
    )
    params = distributed.fetch(state.params)
    return Adapted(params, heads, (before, after), predictions, report)


def write_results(
    run: Run, pretrained: PretrainedFeatures, result: FitResult, adapted: Adapted
) -> dict[str, Any]:
    """Write all files of a finished run, and return the contents of `results.json`.

    The order matters. Model, class weights and report data come first: a run that is killed writes
    them again. With `results.json` the run counts as finished. The page comes last: `show_finished`
    makes it from the other files where it is missing.
    """
    inputs, predictions, class_weights = run.inputs, adapted.predictions, adapted.heads.adapted
    results.save_adapted_model(run.directory, inputs, run.method, adapted.params, adapted.heads)
    content = {
        **results.run_settings(run.config, inputs, run.method),
        "steps": run.steps,
        "batch_size": run.batch_size,
        **results.compare_accuracies(inputs, *adapted.scores),
        "label_free": results.label_free_metrics(pretrained.baseline, predictions, class_weights),
        "health": _health(run, pretrained, result, adapted),
        "train_seconds": result.seconds,
        "images_per_second": result.images_per_second,
    }
    report_data.save(run.directory, adapted.report)
    write_json(run.results_path, content)
    print_escaped(
        f"{content['table']}\n{content['health']['verdict']}\nresults in {run.results_path}"
    )
    report_data.write_page(run.directory)
    _print_next(run.directory)
    return content


def _health(
    run: Run, pretrained: PretrainedFeatures, result: FitResult, adapted: Adapted
) -> dict[str, Any]:
    """Return the entry "health" of `results.json`."""
    labels, test = run.inputs.test_labels, None
    if labels is not None:
        test = LabeledTest(labels, *(found["predictions"] for found in adapted.scores))
    trained = run.method.trains and run.steps > 0 and run.config.wise_ft != 0
    return health.health_report(
        pretrained.baseline,
        adapted.heads.adapted,
        adapted.predictions,
        result.log,
        test,
        trained,
    )


def show_finished(directory: Path) -> dict[str, Any]:
    """Return the `results.json` of a finished run, and print its table and verdict.

    A run that was killed before its report page was written gets it now. Raises DataError if the
    results are damaged.
    """
    path = directory / run_directory.RESULTS
    try:
        finished = read_json(path)
        lines = [finished["table"], finished["health"]["verdict"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected the results of a finished run, but it is damaged ({error}). Move it "
            "away: the same command then makes it again from the last checkpoint"
        ) from error
    print_escaped("\n".join([f"{directory} holds a finished run", *lines]))
    if distributed.is_main_process():
        remove_abandoned(directory)
        if not (directory / run_directory.REPORT).exists():
            report_data.write_page(directory)
        _print_next(directory)
    return finished


def _print_next(directory: Path) -> None:
    report = directory / run_directory.REPORT
    if report.exists():
        print_escaped(f"report in {report}")
    workdir = shlex.quote(str(directory))
    print_next(f"python -m lattec_jax.predict --workdir={workdir} IMAGE_OR_FOLDER ...")
