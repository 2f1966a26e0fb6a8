"""Checkpoints that were damaged: set aside, never deleted, and the one before is used."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lattec_jax.runtime import sharding
from lattec_jax.runtime.errors import ConfigError, TrainingError, WeightsError
from lattec_jax.training.checkpoint_checksums import CHECKSUMS, damage
from lattec_jax.training.checkpoints import CheckpointManager, read
from lattec_jax.training.state import TrainState, init_state


@cache
def state_at(step: int, width: int = 5, seed: int = 7) -> TrainState:
    """A state whose numbers tell the step."""
    params = {"kernel": jnp.full((8, width), float(step)), "bias": jnp.arange(width) + 0.5}
    method = {"prototypes": jnp.full((3, 4), step / 8)}
    state = init_state(params, optax.adam(1e-3), method, MESH, seed=seed)
    return state.replace(step=state.step + step)


MESH = sharding.make_mesh(devices=jax.devices()[:1])


def save(directory: Path, steps: tuple[int, ...], max_to_keep: int = 5, **kinds: int) -> None:
    with CheckpointManager(directory, max_to_keep) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step, **kinds), step, {"seconds": step / 2})


def restore(directory: Path, expected: int) -> None:
    """Restore, and compare every number with those of the expected step."""
    with CheckpointManager(directory, 5) as checkpoints:
        state, extra = checkpoints.restore(state_at(0), MESH)
        assert checkpoints.latest == (expected or None)
    assert extra == ({"seconds": expected / 2} if expected else {})
    jax.tree.map(np.testing.assert_array_equal, state, state_at(expected))


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(p for p in checkpoint.rglob("*") if p.is_file())


def content(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in files_of(directory)}


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def test_the_newest_are_kept_and_their_checksums_are_right(tmp_path):
    save(tmp_path, (1, 2, 3, 4), max_to_keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]
    lines = (tmp_path / "4" / CHECKSUMS).read_text().splitlines()
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "4" / name).read_bytes()).hexdigest() == digest
    assert len(lines) >= 8 and damage(tmp_path / "4") == ""
    restore(tmp_path, 4)


@pytest.mark.parametrize("change", [emptied, truncated, Path.unlink])
def test_a_change_of_any_file_that_is_read_is_seen(tmp_path, change):
    save(tmp_path / "origin", (4,))
    origin, seen = tmp_path / "origin" / "4", set()
    for path in files_of(origin):
        name = path.relative_to(origin)
        place = shutil.copytree(origin, tmp_path / "copy")
        change(place / name)
        if damage(place):
            seen.add(name.as_posix())
        shutil.rmtree(place)
    assert {CHECKSUMS, "state/manifest.ocdbt", "extra/metadata"} <= seen
    assert sum("/d/" in name for name in seen) >= 2  # the arrays' own files


FULL = pytest.mark.full


@pytest.mark.parametrize(
    "change", [flipped, *(pytest.param(c, marks=FULL) for c in (emptied, truncated, Path.unlink))]
)
def test_whatever_happens_to_a_file_the_numbers_are_right(tmp_path, caplog, change):
    """Each file in turn: either it is not needed, or the checkpoint before is used."""
    save(tmp_path / "origin", (2, 4))
    aside = []
    for number, path in enumerate(files_of(tmp_path / "origin" / "4")):
        name = path.relative_to(tmp_path / "origin")
        place = tmp_path / str(number)
        shutil.copytree(tmp_path / "origin", place)
        change(place / name)
        if (place / name).exists() and (place / name).read_bytes() == path.read_bytes():
            continue  # an empty file cannot be damaged further
        damaged = content(place / "4")
        caplog.clear()
        # Orbax's own files at the top level are not needed to restore.
        if damage(place / "4"):
            restore(place, 2)
            assert content(place / "damaged-4") == damaged  # set aside as it was
            assert "checkpoint of step 4 cannot be used" in caplog.text
            assert "damaged-4" in caplog.text
            aside.append(name.as_posix())
        else:
            restore(place, 4)
    assert {"4/SHA256SUMS", "4/state/manifest.ocdbt", "4/extra/metadata"} <= set(aside)
    assert sum("/d/" in name for name in aside) >= 2  # the arrays' own files


def test_a_checkpoint_of_other_shapes_tree_or_run_is_set_aside(tmp_path, caplog):
    save(tmp_path, (2,))
    save(tmp_path / "other", (4,), width=6)
    shutil.move(tmp_path / "other" / "4", tmp_path / "4")
    restore(tmp_path, 2)
    assert "damaged-4: it cannot be restored into this run" in caplog.text
    save(tmp_path / "seed", (4,), seed=8)
    shutil.move(tmp_path / "seed" / "4", tmp_path / "4")
    restore(tmp_path, 2)
    shutil.copytree(tmp_path / "2", tmp_path / "6")  # a step under another name
    restore(tmp_path, 2)
    with CheckpointManager(tmp_path / "tree", 2) as checkpoints:
        state = state_at(4).replace(method={"other": jnp.ones(2)})
        checkpoints.save(state, 4, {})
    shutil.move(tmp_path / "tree" / "4", tmp_path / "4")
    restore(tmp_path, 2)
    assert {"damaged-4", "damaged-4-2", "damaged-4-3", "damaged-6"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_where_nothing_is_usable_the_run_begins_again_and_says_so(tmp_path, caplog):
    save(tmp_path, (2, 4))
    for step in (2, 4):
        flipped(tmp_path / str(step) / "state" / "manifest.ocdbt")
    with caplog.at_level(logging.WARNING):
        restore(tmp_path, 0)
    assert "no usable checkpoint is left" in caplog.text and "starting at step 0" in caplog.text
    save(tmp_path, (2, 4))  # the same steps again do not meet what was set aside
    restore(tmp_path, 4)
    assert {p.name for p in tmp_path.iterdir()} == {"2", "4", "damaged-2", "damaged-4"}


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    save(tmp_path, (2, 4))
    shutil.copytree(tmp_path / "4", tmp_path / "6.orbax-checkpoint-tmp")
    (tmp_path / "6.orbax-checkpoint-tmp" / "state" / "manifest.ocdbt").unlink()
    for path in files_of(tmp_path / "2")[::2]:  # killed while the oldest was being deleted
        path.unlink()
    restore(tmp_path, 4)
    save(tmp_path, (6,), max_to_keep=2)
    restore(tmp_path, 6)


def test_a_file_instead_of_the_directory_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(ConfigError, match="expected a directory of checkpoints, found a file"):
        CheckpointManager(tmp_path / "checkpoints", 2)
    assert (tmp_path / "checkpoints").read_text() == "mine"


def test_an_empty_or_foreign_folder_among_checkpoints_is_passed_over(tmp_path):
    save(tmp_path, (2,))
    (tmp_path / "9").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine").mkdir()
    restore(tmp_path, 2)
    assert {p.name for p in tmp_path.iterdir()} == {"2", "damaged-9", "notes.txt", "mine"}


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_the_older_stay(tmp_path, monkeypatch):
    save(tmp_path, (2,))

    def no_room(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("lattec_jax.training.checkpoint_checksums.write_atomic", no_room)
    with pytest.raises(TrainingError, match=r"step 4 cannot be written .*No space left.*step 2 is"):
        save(tmp_path, (4,), max_to_keep=1)
    monkeypatch.undo()
    restore(tmp_path, 2)


def test_what_must_come_before_a_checkpoint_is_done_before_it_is_complete(tmp_path):
    seen = []

    def before() -> None:
        seen.append(sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()))

    with CheckpointManager(tmp_path, 5) as checkpoints:
        checkpoints.save(state_at(1), 1, {}, before)
        checkpoints.wait()
        checkpoints.save(state_at(2), 2, {}, before)
    assert seen == [[], ["1"]]


def test_where_that_fails_the_checkpoint_is_not_complete(tmp_path):
    def full() -> None:
        raise OSError(28, "No space left on device")

    with CheckpointManager(tmp_path, 5) as checkpoints:
        checkpoints.save(state_at(1), 1, {})
        checkpoints.save(state_at(2), 2, {}, full)
        with pytest.raises(TrainingError, match=r"step 2 cannot be written.*step 1 is kept"):
            checkpoints.wait()
    with CheckpointManager(tmp_path, 5) as checkpoints:
        state, _ = checkpoints.restore(state_at(0), MESH)
    jax.tree.map(np.testing.assert_array_equal, state, state_at(1))


METADATA = "_CHECKPOINT_METADATA"  # Orbax's, which has no checksum


@pytest.mark.parametrize(
    "change",
    [
        lambda metadata: "[" * 100_000,
        lambda metadata: json.dumps([]),
        lambda metadata: json.dumps(metadata | {"commit_timestamp_nsecs": 10**40}),
        lambda metadata: json.dumps(metadata | {"init_timestamp_nsecs": 1.5}),
        lambda metadata: json.dumps(metadata | {"item_handlers": {"state": 3}}),
        lambda metadata: json.dumps(metadata | {"performance_metrics": {"x": 1}}),
    ],
)
def test_a_step_with_damaged_orbax_metadata_is_set_aside(change, tmp_path):
    save(tmp_path, (1, 2))
    metadata = tmp_path / "2" / METADATA
    metadata.write_text(change(json.loads(metadata.read_text())))
    restore(tmp_path, 1)
    assert (tmp_path / "damaged-2").is_dir()


def test_a_further_key_of_another_orbax_does_no_harm(tmp_path):
    save(tmp_path, (1, 2))
    metadata = tmp_path / "2" / METADATA
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"new": [1]}))
    restore(tmp_path, 2)


@pytest.mark.parametrize("name", ["_sharding", "_METADATA", "manifest.ocdbt"])
def test_what_orbax_cannot_read_is_an_error_of_ours_whatever_the_checksums(name, tmp_path):
    save(tmp_path, (1, 2))
    (tmp_path / "2" / "state" / name).write_text('{"a": 1}')
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(tmp_path / '2')}\n"
        for path in files_of(tmp_path / "2")
        if path.name not in (CHECKSUMS, METADATA)
    ]
    (tmp_path / "2" / CHECKSUMS).write_text("".join(lines))
    assert damage(tmp_path / "2") == ""
    with pytest.raises(WeightsError, match=r"checkpoint .*2 cannot be read \("):
        read(tmp_path, 2)
    shutil.rmtree(tmp_path / "1")
    with CheckpointManager(tmp_path, 5) as checkpoints:
        checkpoints.restore(state_at(0), MESH)  # from this step, or from none


def test_a_checkpoint_that_a_killed_process_had_half_deleted_is_deleted(tmp_path):
    save(tmp_path, (1, 2), max_to_keep=1)
    shutil.copytree(tmp_path / "2", tmp_path / "1")
    (tmp_path / "1" / CHECKSUMS).unlink()
    (tmp_path / "1" / METADATA).unlink()
    with CheckpointManager(tmp_path, 1) as checkpoints:
        state, _ = checkpoints.restore(state_at(0), MESH)
    assert int(state.step) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
