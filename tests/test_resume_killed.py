"""A run that is killed again and again ends as one that was never interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.dummy import dummy_checkpoint
from tests.runs import NOT_REPEATED, arguments, assert_equal, logged, make_images


def environment() -> dict[str, str]:
    """Of a process with one CPU device, which takes what was compiled before."""
    own = {
        "XLA_FLAGS": "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return {**os.environ, **own}


def start(place: Path, workdir: str, steps: int) -> subprocess.Popen:
    """A run as a process, on one CPU device; its output goes to a file."""
    command = arguments(
        "labeled",
        f"--config.train.max_steps={steps}",
        f"--config.train.epochs={steps}",
        "--config.checkpoint_every=1",
        "--config.train.learning_rate=1e-4",
        f"--workdir={workdir}",
    )
    with open(place / f"{workdir}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lattec_jax.train", *command[1:]],
            cwd=place,
            env=environment(),
            stdout=log,
            stderr=log,
        )


def finish(place: Path, workdir: str, steps: int) -> dict:
    """Run to the end and return `results.json`."""
    status = start(place, workdir, steps).wait()
    assert status == 0, (place / f"{workdir}.log").read_text()[-3000:]
    return json.loads((place / workdir / "results.json").read_text(encoding="utf-8"))


def scalars(workdir: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of all TensorBoard scalars, as TensorBoard reads them."""
    events = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag not in NOT_REPEATED]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def kill(process: subprocess.Popen, directory: Path, draw: random.Random) -> str:
    """Kill it in start-up, within training, while a checkpoint is written, or near the end."""
    moment = draw.choice(("start-up", "training", "training", "saving", "saving", "end"))
    metrics = directory / "metrics.jsonl"
    before = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    until = time.monotonic() + 120
    if moment == "start-up":
        time.sleep(draw.uniform(0, 6))
    else:
        # Steps may go back by one or two: wait for this session's own.
        steps = draw.randint(2, 12) if moment != "end" else draw.randint(20, 60)
        while process.poll() is None and time.monotonic() < until:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= before + steps:
                break
            time.sleep(0.002)
        if moment == "saving":
            while process.poll() is None and time.monotonic() < until:
                if any(directory.glob("checkpoints/*tmp*")):
                    break
        time.sleep(draw.uniform(0, 0.03))
    process.send_signal(signal.SIGKILL)
    process.wait()
    partial = any(directory.glob("checkpoints/*tmp*"))
    lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    return f"{moment}: at {lines} lines" + (", a checkpoint half-written" if partial else "")


@pytest.mark.parametrize(
    ("kills", "steps"),
    [pytest.param(2, 30, marks=pytest.mark.full), pytest.param(30, 300, marks=pytest.mark.soak)],
)
def test_kills_change_nothing(tmp_path, kills, steps):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    print(f"KILL_SEED={seed}")
    draw = random.Random(seed)
    make_images(tmp_path / "labeled", 12, labeled=True)
    dummy_checkpoint().save(tmp_path / "weights")
    whole = finish(tmp_path, "whole", steps)
    half_written = 0
    for number in range(kills):
        happened = kill(start(tmp_path, "broken", steps), tmp_path / "broken", draw)
        half_written += "half" in happened
        print(f"kill {number + 1}: {happened}", flush=True)
    broken = finish(tmp_path, "broken", steps)
    assert_equal(tmp_path / "whole", tmp_path / "broken")
    log = [line["step"] for line in logged(tmp_path / "broken")]
    assert log == list(range(1, steps + 1))
    events = scalars(tmp_path / "broken")
    assert events == scalars(tmp_path / "whole")
    assert [step for step, _ in events["loss"]] == list(range(1, steps + 1))
    assert not list((tmp_path / "broken/checkpoints").glob("damaged*"))
    assert half_written > 0 or kills < 30  # otherwise the seed tried too little
    times = ("train_seconds", "images_per_second")
    assert {k: v for k, v in whole.items() if k not in times} == {
        k: v for k, v in broken.items() if k not in times
    }
    print(f"{kills} kills, {half_written} within a checkpoint; all files equal")
