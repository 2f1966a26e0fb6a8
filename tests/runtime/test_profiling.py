"""The trace that `--config.profile` writes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lattec_jax.runtime import profiling, run_directory
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.profiling import Profile


def train(directory: Path, start: int, stop: int) -> None:
    """A loop as the train loop has it; its first step compiles."""

    @jax.jit
    def a_step(state: jax.Array) -> jax.Array:
        return jnp.tanh(state @ state)

    state = jnp.ones((64, 64)) / 64
    with Profile(str(directory), start, stop) as profile:
        for done in range(start + 1, stop + 1):
            state = a_step(state)
            profile.step(done, state)


def traced(directory: Path) -> list[dict]:
    """The events of the only trace below a directory."""
    (trace,) = directory.glob("plugins/profile/*/perfetto_trace.json.gz")
    assert list(trace.parent.glob("*.xplane.pb"))
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        return json.load(file)["traceEvents"]


def compilations(events: list[dict]) -> list[str]:
    return [e["name"] for e in events if "compile" in e.get("name", "").lower()]


def test_compilation_shows_where_it_is_traced(tmp_path):
    with jax.profiler.trace(tmp_path, create_perfetto_trace=True):
        jax.jit(lambda x: x + 1.5)(jnp.ones(3)).block_until_ready()
    assert compilations(traced(tmp_path))


@pytest.mark.parametrize(
    ("start", "stop", "steps"), [(0, 12, range(3, 8)), (40, 44, range(43, 45))]
)
def test_a_trace_names_its_steps_and_has_no_compilation(tmp_path, capsys, start, stop, steps):
    train(tmp_path, start, stop)
    events = traced(tmp_path)
    named = [e for e in events if e.get("name") == "train"]
    assert [int(e["args"]["step_num"]) for e in named] == list(steps)
    names = [e.get("name", "") for e in events]
    assert names.count("PjitFunction(a_step)") >= len(steps)
    assert not compilations(events)
    assert f"trace of steps {steps[0]} to {steps[-1]} in {tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_too_short_for_a_trace_says_so(tmp_path, capsys, stop):
    train(tmp_path, 0, stop)
    assert "no trace" in capsys.readouterr().out
    train(tmp_path / "next", 0, 9)  # nothing is left running
    assert traced(tmp_path / "next")


def test_of_several_processes_the_first_traces(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(profiling.distributed, "is_main_process", lambda: False)
    train(tmp_path, 0, 9)
    train(tmp_path, 0, 1)
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_a_trace_of_a_run_is_not_another_run(tmp_path):
    command = ["train", "--config=configs/demo.py"]
    run_directory.acquire(tmp_path, parse(command)[0], {})
    run_directory.check_available(tmp_path, parse([*command, "--config.profile=there"])[0])
    with pytest.raises(ConfigError, match="log_every"):
        run_directory.check_available(tmp_path, parse([*command, "--config.log_every=3"])[0])


def test_a_directory_that_cannot_be_made_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"config\.profile: expected a directory for the trace"):
        Profile(str(tmp_path / "file"), 0, 10)
