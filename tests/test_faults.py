"""Real runs on a disk that is full or read-only, and how long a run takes to end."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.dummy import dummy_checkpoint
from tests.runs import arguments, assert_equal, make_images
from tests.test_resume_killed import environment

# A file system of its own, seen by these processes only. $1: its size; $2: how it is mounted anew
# before the second run; $3: what happens before that. What it held after each run is copied out.
SCRIPT = """
mkdir work && mount -t tmpfs -o size=$1 room work || exit 9
size=$1 anew=$2 between=$3; shift 3
"$@" > first.log 2>&1; echo $? > first.status; cp -a work first
eval "$between"; mount -o remount,$anew work
"$@" > second.log 2>&1; echo $? > second.status; cp -a work second
"""
NAMESPACE = ("unshare", "--mount", "--map-root-user")


def may_mount() -> bool:
    """Whether this user can have a file system of its own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not may_mount(), reason="no mount namespaces for this user")


def command(*extra: str) -> list[str]:
    """A run of six steps with a checkpoint after every second, in `work/run`."""
    given = arguments("labeled", "--workdir=work/run", *extra)
    return [sys.executable, "-m", "lattec_jax.train", *given[1:]]


def content(directory: Path) -> dict[str, bytes]:
    """All files below a directory."""
    found = sorted(p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in found}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with images, a CLIP, the stages before training, and an undisturbed run."""
    directory = tmp_path_factory.mktemp("faults")
    make_images(directory / "labeled", 12, labeled=True)
    dummy_checkpoint().save(directory / "weights")
    subprocess.run(command(), cwd=directory, env=environment(), check=True, capture_output=True)
    (directory / "work").rename(directory / "whole")
    return directory


def copy_inputs(place: Path, new: Path) -> None:
    """Images, weights and the stages before training, with their times: image caches depend on
    them."""
    for name in ("labeled", "weights", "artifacts"):
        shutil.copytree(place / name, new / name, copy_function=shutil.copy2)


def twice(place: Path, new: Path, size: int, anew: str, between: str = "") -> list[tuple[int, str]]:
    """Status and output of the same command on a file system of `size` bytes, and again after the
    shell command `between` and after it was mounted `anew`."""
    copy_inputs(place, new)
    script = ["sh", "-c", SCRIPT, "sh", str(size), anew, between, *command()]
    subprocess.run([*NAMESPACE, *script], cwd=new, env=environment(), check=True)
    names = ("first", "second")
    return [(int((new / f"{n}.status").read_text()), (new / f"{n}.log").read_text()) for n in names]


def newest(directory: Path) -> int:
    """The last complete checkpoint; 0: none."""
    return max([int(p.name) for p in directory.glob("checkpoints/*") if p.name.isdigit()] or [0])


@needs_mount
@pytest.mark.soak
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97])
def test_a_disk_that_fills_up_at_any_moment_loses_nothing(place, tmp_path, fraction):
    whole = place / "whole/run"
    size = int(fraction * sum(len(data) for data in content(whole).values())) // 4096 * 4096
    (first, said), (second, then) = twice(place, tmp_path, max(size, 4096), "size=1g")
    print(
        f"{size} bytes: status {first}, checkpoint {newest(tmp_path / 'first/run')}\n{said[-700:]}"
    )
    assert "Traceback" not in said + then, said + then
    kept = newest(tmp_path / "first/run")
    if first:
        assert first == 2 and ("No space left" in said or "MB are free" in said), said
        assert "the same command continues" in said or not kept, said
    else:
        assert "the report could not be written" in said, said
    assert second == 0, then
    assert f"continuing at step {kept} of 6" in then or not kept or not first
    assert_equal(whole, tmp_path / "second/run")
    assert not list((tmp_path / "second/run/checkpoints").glob("damaged*"))


@needs_mount
@pytest.mark.soak
def test_a_read_only_work_directory_is_said_and_stays_as_it_is(place, tmp_path):
    """The first run ends after four steps; the directory is read-only for the second."""
    """Before the second run, all is as if the first had been killed after its last checkpoint."""
    between = "rm -r work/run/results.json work/run/model; rm -r first; cp -a work first"
    first, (status, said) = twice(place, tmp_path, 2**30, "ro", between)
    assert first[0] == 0, first[1]
    assert status == 2 and "cannot write the work directory work/run" in said, said
    assert "Read-only" in said and "Traceback" not in said, said
    assert content(tmp_path / "first") == content(tmp_path / "second")


@needs_mount
@pytest.mark.soak
@pytest.mark.parametrize("room", [0, 40, 160, 220, 280])
def test_results_that_find_no_room_are_made_by_the_same_command(place, tmp_path, room):
    """`room` kilobytes are left after the last checkpoint, for the model, results and report."""
    made = ("results.json", "report_data.json", "report.html", "model", "classifier.safetensors")
    script = "".join(f"rm -r work/run/{name}; " for name in made)
    script += f"fallocate -l $(($(df --output=avail -B1 work | tail -1) - {room}000)) work/filler"
    (first, _), (second, said) = twice(place, tmp_path, 2**24, "rw", script)
    print(f"{room} kB: status {second}\n{said[-400:]}")
    assert first == 0 and "Traceback" not in said, said
    if second:
        assert second == 2 and "No space left" in said, said
        assert "the same command continues" in said, said
        assert not (tmp_path / "second/run/results.json").exists()
    else:
        assert "the report could not be written" in said, said
    assert newest(tmp_path / "second/run") == 6
    shutil.rmtree(tmp_path / "work", ignore_errors=True)
    shutil.copytree(tmp_path / "second", tmp_path / "work")
    done = subprocess.run(
        command(), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert "continuing at step 6 of 6" in done.stdout or not second
    assert_equal(place / "whole/run", tmp_path / "work/run")


@pytest.mark.soak
def test_sigterm_ends_a_run_within_ten_seconds_and_the_step_under_way(place, tmp_path):
    """Timed from the signal, over the whole of training: the bound is a promise to schedulers."""
    copy_inputs(place, tmp_path)
    longer = command("--config.train.max_steps=100000", "--config.train.epochs=100000")
    metrics = tmp_path / "work/run/metrics.jsonl"
    at, waited = 0, []
    for _ in range(5):
        with open(tmp_path / "log", "ab") as log:
            process = subprocess.Popen(
                longer, cwd=tmp_path, env=environment(), stdout=log, stderr=log
            )
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") > at + 2):
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.01)
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75
        waited.append(time.monotonic() - sent)
        last = newest(tmp_path / "work/run")
        lines = metrics.read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == list(range(1, len(steps) + 1))
        assert last >= len(steps) > at  # the step under way is saved; a later run logs it
        at = len(steps)
    print(f"seconds from the signal to the end: {[round(w, 2) for w in waited]}")
    assert max(waited) < 10
