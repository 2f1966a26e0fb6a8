"""Whole runs on a device with little memory."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest

from lattec_jax import train_loop
from lattec_jax.runtime.errors import TrainingError
from tests.runs import assert_equal, model_of, repeated, run


class Failing:
    """A jitted step that is out of memory in step `at`."""

    def __init__(self, step, at: int) -> None:
        self.step, self.at, self.lower = step, at, step.lower

    def __call__(self, state, *rest):
        if int(jax.device_get(state.step)) + 1 == self.at:
            for leaf in jax.tree.leaves(state):
                leaf.delete()  # as the step does, which donates its state
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
        return self.step(state, *rest)


def fail(monkeypatch, at: dict[int, int]) -> list[int]:
    """Let steps of a microbatch size fail; return the sizes of the steps that are built."""
    build, built = train_loop.build_train_step, []

    def failing(run, optimizer, schedule, plan):
        built.append(plan.microbatch_size)
        step = build(run, optimizer, schedule, plan)
        return Failing(step, at[built[-1]]) if built[-1] in at else step

    monkeypatch.setattr(train_loop, "build_train_step", failing)
    return built


@pytest.mark.full
def test_a_run_that_is_out_of_memory_goes_on_with_smaller_microbatches(
    trained, monkeypatch, capsys
):
    built = fail(monkeypatch, {16: 5})
    result = run("labeled", "--workdir=second", "--config.eval_every=3")
    shown = capsys.readouterr().out
    assert built == [16, 16, 8]  # the second with rematerialization
    assert re.search(
        r"out of memory in a step with --config\.train\.microbatch_size=16 (.|\n)*"
        r"continuing at step 4 of 6\n(.|\n)*microbatch size: 8 of 16 images, with remat",
        shown,
    )
    first = json.loads((trained / "first/results.json").read_text())
    assert result["adapted"] == first["adapted"]
    for name, value in model_of(trained / "first").items():
        np.testing.assert_allclose(model_of(trained / "second")[name], value, atol=2e-4)
    steps = [[line[0] for line in repeated(trained / name)] for name in ("first", "second")]
    assert steps[0] == steps[1]
    recorded = json.loads((trained / "second/config.json").read_text())
    assert recorded["train"]["microbatch_size"] == "auto"


@pytest.mark.full
def test_no_other_size_is_tried_where_the_configuration_names_one(place, monkeypatch):
    fail(monkeypatch, {16: 3})
    with pytest.raises(TrainingError, match=r"microbatch_size=16 .*use 'auto' or a smaller"):
        run("labeled", "--config.train.microbatch_size=16", "--workdir=run")
    assert sorted(p.name for p in (place / "run/checkpoints").iterdir()) == ["2"]


@pytest.mark.full
def test_a_run_of_another_microbatch_size_is_continued(place, monkeypatch):
    """Version 0.2.0 recorded 0, its default."""
    given = ("labeled", "--workdir=run", "--config.train.microbatch_size=0")
    with monkeypatch.context() as patch, pytest.raises(TrainingError):
        fail(patch, {16: 3})
        run(*given)
    run(*given[:2])
    run(given[0], "--workdir=whole")
    assert_equal(place / "run", place / "whole")
