"""Several processes train the model that one trains; joining, and what each process reads."""

from __future__ import annotations

import json
import signal
import time
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from lattec_jax.data.images.image_cache import ImageCache
from lattec_jax.inference.feature_extractor import FeatureExtractor
from lattec_jax.models.clip import define
from lattec_jax.runtime import distributed, sharding
from lattec_jax.runtime.errors import ConfigError, TrainingError
from lattec_jax.runtime.preemption import Terminated
from lattec_jax.training import input_pipeline
from lattec_jax.training.batches import Batches
from lattec_jax.training.step import DeviceData
from tests.dummy import dummy_checkpoint
from tests.processes import ROOT, start, wait
from tests.runs import arguments, make_images

TWENTY_STEPS = (
    "--config.train.max_steps=20",
    "--config.train.epochs=100",
    "--config.checkpoint_every=5",
)
CLASS_TEXTS = "--config.method.texts=('class',)"
SPLIT = (f"--config.weights={ROOT}/lattec_jax/demo/tiny_clip", "--config.compute.fsdp=2")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "labeled", 12, labeled=True)
    dummy_checkpoint().save(tmp_path / "weights")
    return tmp_path


def training(workdir: str, *extra: str) -> list[str]:
    """The command of twenty steps at learning rate 1e-3."""
    own = arguments("labeled", *TWENTY_STEPS, f"--workdir={workdir}", *extra)
    return ["lattec_jax.train", *own[1:]]


def run(place: Path, workdir: str, *extra: str, processes: int = 2, devices: int = 2) -> None:
    started = start(place, training(workdir, *extra), workdir, processes, devices)
    wait(place, workdir, started)


def model(workdir: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "model/model.safetensors")


def distance(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Between two models, all parameters taken as one vector."""
    squares = [np.sum((first[k].astype(np.float64) - second[k]) ** 2) for k in first]
    return float(np.sqrt(sum(squares)))


def check_equal(place: Path, one: str, several: str, weights: Path | None = None) -> None:
    """Parameters, prototypes and the log of a run of several processes are those of one."""
    before = safetensors.numpy.load_file((weights or place / "weights") / "model.safetensors")
    moved = distance(before, model(place / one))
    apart = distance(model(place / one), model(place / several))
    print(f"{several}: {apart:.2e} apart, {moved:.2e} moved: {apart / moved:.2%}")
    assert moved > 0 and apart <= 1e-3 * moved  # ten times the 0.01% that was measured
    expected, found = (
        [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
        for name in (one, several)
    )
    assert [line["step"] for line in found] == list(range(1, 21))
    for before, after in zip(expected, found, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-3)


# ------------------------------------------------------------------------------------- whole runs


@pytest.mark.full
def test_two_processes_train_the_model_that_one_trains(place):
    run(place, "two", CLASS_TEXTS, devices=1)
    run(place, "one", CLASS_TEXTS, processes=1)
    check_equal(place, "one", "two")
    # One process speaks, and the other processes leave nothing behind.
    assert "results in two" in (place / "two.0.log").read_text()
    said = [x for x in (place / "two.1.log").read_text().splitlines() if "[Gloo]" not in x]
    assert said == ["joining the other processes, for at most 300 seconds"]
    assert not list((place / "artifacts").glob("hosts-*"))
    assert json.loads((place / "two/results.json").read_text())["device"] == "2 x cpu"


@pytest.mark.soak
def test_streamed_and_evaluated_by_two_processes(place):
    streamed = ("--config.image_cache.placement=host", "--config.eval_every=10")
    run(place, "one", *streamed, processes=1, devices=4)
    run(place, "two", *streamed)
    check_equal(place, "one", "two")
    one, two = (json.loads((place / n / "results.json").read_text()) for n in ("one", "two"))
    assert one["adapted"] == two["adapted"] and one["zero_shot"] == two["zero_shot"]

    wait(place, "eval", start(place, ["lattec_jax.evaluate", "--workdir=one"], "eval"))
    assert one["table"] in (place / "eval.0.log").read_text()
    assert one["table"] not in (place / "eval.1.log").read_text()
    labels = ["lattec_jax.pseudo_label", *training("", "--config.artifacts=other")[1:]]
    labels = [argument for argument in labels if not argument.startswith("--workdir")]
    wait(place, "labels", start(place, labels, "labels"))
    first, second = (
        next((place / root).glob("labeled/pseudo_labels/*.jsonl")).read_text().splitlines()
        for root in ("artifacts", "other")
    )
    for before, after in zip(first, second, strict=True):
        assert json.loads(before) == pytest.approx(json.loads(after), abs=1e-5)


@pytest.mark.soak
def test_parameters_split_over_two_processes(place):
    run(place, "one", *SPLIT, processes=1)
    run(place, "two", *SPLIT, devices=1)  # every parameter lies half here and half there
    check_equal(place, "one", "two", ROOT / "lattec_jax/demo/tiny_clip")


def until_logged(place: Path, workdir: str, steps: int) -> None:
    """Return when so many steps are in the log."""
    path, end = place / workdir / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < steps:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.soak
@pytest.mark.parametrize("killed", [0, 1])
def test_killed_processes_continue(place, killed):
    run(place, "whole", *SPLIT, devices=1)
    started = start(place, training("broken", *SPLIT), "broken", devices=1)
    until_logged(place, "broken", 7)
    started[killed].send_signal(signal.SIGKILL)
    began = time.monotonic()
    other = started[1 - killed].wait(timeout=distributed.HEARTBEAT_TIMEOUT_S + 40)
    print(f"the other process ended with {other} after {time.monotonic() - began:.0f} s")
    assert other != 0
    message = (place / f"broken.{1 - killed}.log").read_text()
    assert "another task died" in message
    assert not (place / "broken/results.json").exists()
    run(place, "broken", *SPLIT, devices=1)
    assert "continuing at step 5" in (place / "broken.0.log").read_text()
    check_equal(place, "whole", "broken", ROOT / "lattec_jax/demo/tiny_clip")
    whole, broken = model(place / "whole"), model(place / "broken")
    assert all(np.array_equal(whole[name], broken[name]) for name in whole)


@pytest.mark.soak
def test_a_signal_to_one_process_ends_both_after_the_same_step(place):
    run(place, "whole", devices=1)
    command = training("broken", "--config.checkpoint_every=1000")
    started = start(place, command, "broken", devices=1)
    until_logged(place, "broken", 7)
    started[1].send_signal(signal.SIGTERM)
    wait(place, "broken", started, status=75)
    (saved,) = [p for p in (place / "broken/checkpoints").iterdir() if p.name.isdigit()]
    assert 7 <= int(saved.name) < 20
    assert "SIGTERM: the last step is saved" in (place / "broken.1.log").read_text()
    assert "a signal to another process" in (place / "broken.0.log").read_text()
    wait(place, "broken", start(place, command, "broken", devices=1))
    assert f"continuing at step {saved.name} of 20" in (place / "broken.0.log").read_text()
    check_equal(place, "whole", "broken")


@pytest.mark.soak
def test_an_error_of_one_process_is_reported_by_all_at_once(place):
    (place / "weights/model.safetensors").write_bytes(b"no tensors")
    began = time.monotonic()
    wait(place, "bad", start(place, training("bad"), "bad", devices=1), status=2)
    assert time.monotonic() - began < distributed.HEARTBEAT_TIMEOUT_S
    assert "error: " in (place / "bad.0.log").read_text()
    assert "process 0 of 2" in (place / "bad.1.log").read_text()


# --------------------------------------------------------------------------------------- joining


def test_the_three_variables_are_read_together_or_not_at_all():
    address = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}
    assert distributed.from_environment({}) == distributed.from_environment(address) == {}
    given = {**address, "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert distributed.from_environment(given) == {
        "coordinator_address": "10.0.0.1:1234",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }
    for wrong in ({**given, "JAX_PROCESS_ID": "x"}, {"JAX_NUM_PROCESSES": "4"}):
        with pytest.raises(ConfigError, match="JAX_PROCESS_ID=0 or 1, found"):
            distributed.from_environment(wrong)


@pytest.mark.parametrize("variable", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_are_not_joined_are_warned(variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "1")
    distributed.initialize(False)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(variable, "16")
    distributed.initialize(False)
    said = capsys.readouterr().err
    assert f"{variable} is 16" in said and "--distributed joins them" in said


def test_without_a_cluster_joining_is_refused(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)

    def nobody(**arguments):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with pytest.raises(ConfigError, match=r"Slurm \(srun\).*coordinator_address should be"):
        distributed.initialize(True)


# ------------------------------------------------------------------------------------ agreement


class Pretended:
    """This process and another one, whose numbers are given."""

    def __init__(self, monkeypatch, first: bool, theirs: list[int]):
        self.mine: list[int] = []
        monkeypatch.setattr(distributed, "count", lambda: 2)
        monkeypatch.setattr(distributed, "is_main_process", lambda: first)

        def numbers(value: int) -> list[int]:
            self.mine.append(value)
            both = [value, theirs[len(self.mine) - 1]]
            return both if first else both[::-1]

        monkeypatch.setattr(distributed, "allgather", numbers)


WELL, FAILED, INTERRUPTED = 0, 1, 2


def test_the_main_process_is_done_before_the_other_begins(monkeypatch):
    for first, rounds in ((True, 0), (False, 1)):
        pretended = Pretended(monkeypatch, first, [WELL, WELL])
        with distributed.main_process_first():
            assert len(pretended.mine) == rounds
        assert pretended.mine == [WELL, WELL]


@pytest.mark.parametrize(
    ("theirs", "error", "says"),
    [(FAILED, TrainingError, "process 1 of 2"), (INTERRUPTED, Terminated, "another process")],
)
def test_an_error_on_another_process_is_raised_here(theirs, error, says, monkeypatch):
    Pretended(monkeypatch, True, [theirs])
    with pytest.raises(error, match=says), distributed.raise_on_all():
        pass


@pytest.mark.parametrize(("error", "told"), [(ValueError, FAILED), (Terminated, INTERRUPTED)])
def test_an_error_here_is_sent_to_the_others(error, told, monkeypatch):
    pretended = Pretended(monkeypatch, False, [WELL, WELL])
    with pytest.raises(error, match="mine"), distributed.main_process_first():
        raise error("mine")
    assert pretended.mine == [WELL, told]


def test_processes_with_other_configurations_or_files_are_refused(monkeypatch, tmp_path):
    Pretended(monkeypatch, True, [1])
    with pytest.raises(ConfigError, match="2 processes were started with different conf"):
        distributed.check_same_on_all("seed: 0", tmp_path)
    monkeypatch.setattr(distributed, "wait_until_visible", lambda path: path.exists())
    Pretended(monkeypatch, False, [zlib.crc32(b"seed: 0"), WELL, 7, 9, WELL])
    name = r"\.shared_filesystem\.0000000700000009\.partial"
    with pytest.raises(ConfigError, match=rf"does not see .*{name}.* one file system"):
        distributed.check_same_on_all("seed: 0", tmp_path)
    Pretended(monkeypatch, True, [zlib.crc32(b"seed: 0"), WELL, 7, 9, WELL])
    distributed.check_same_on_all("seed: 0", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_one_process_agrees_with_itself(tmp_path):
    assert distributed.broadcast_from_main(lambda: True) and not distributed.all_agree(False)
    signals = distributed.SignalAgreement()
    assert (
        signals.any_process_delayed(True)
        and signals.any_process_now(True)
        and not signals.any_process_delayed(False)
    )
    tree = {"a": jax.numpy.arange(3)}
    assert distributed.broadcast(tree) is tree
    np.testing.assert_array_equal(distributed.fetch(tree)["a"], [0, 1, 2])


def test_signals_are_acted_on_some_steps_later(monkeypatch):
    """The devices of this process play those of both."""
    monkeypatch.setattr(distributed, "count", lambda: 2)
    signals = distributed.SignalAgreement()
    heard = [signals.any_process_delayed(step == 3) for step in range(8)]
    assert heard == [step == 3 + distributed.SIGNAL_LAG_STEPS for step in range(8)]


# --------------------------------------------------------------------------------- what each reads


class Reads(np.ndarray):
    """Pixels that record which of them were read."""

    def __getitem__(self, index):
        self.seen.append(index)
        return np.asarray(super().__getitem__(index))


@pytest.mark.parametrize("mine", [(0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 6, 7)])
def test_the_images_of_a_process_are_those_of_its_devices(mine, monkeypatch, all_devices):
    """Half of the eight devices play those of this process."""
    mesh = sharding.make_mesh(fsdp=2)
    parts = sharding.over_batch(mesh).devices_indices_map((16,))
    its = {device: part for device, part in parts.items() if device.id in mine}
    monkeypatch.setattr(
        jax.sharding.NamedSharding, "addressable_devices_indices_map", lambda self, shape: its
    )
    expected = [index for n in mine for index in (2 * n, 2 * n + 1)]
    assert sharding.process_local_indices(mesh, 16).tolist() == expected


def test_only_images_of_the_own_devices_are_read(monkeypatch):
    own, placed = np.array([0, 1, 2, 3, 12, 13]), []
    monkeypatch.setattr(sharding, "process_local_indices", lambda mesh, count: own)
    monkeypatch.setattr(
        sharding, "place_process_local", lambda mesh, count, rows: placed.append(rows)
    )
    pixels, seen = np.arange(40 * 12, dtype=np.uint16).reshape(40, 2, 2, 3), []
    monkeypatch.setattr(ImageCache, "read", lambda self, rows: (seen.append(rows), pixels[rows])[1])
    cache = ImageCache(tuple(map(str, range(40))), pixels, None, ())
    batches = Batches(40, 16, 0, 4, np.zeros((40, 0), np.int32), 24, 8)
    device_data = DeviceData(None, None, None, None, pixels=None, sizes=None)
    stream = input_pipeline.device_batches(batches, cache, device_data, 3, 4, sharding.make_mesh())
    ((host, _),) = stream
    np.testing.assert_array_equal(np.concatenate(seen), host.images[own])
    np.testing.assert_array_equal(placed[0], pixels[host.images[own]])


def test_the_feature_extractor_reads_images_of_its_own_devices_only(monkeypatch):
    checkpoint, mesh = dummy_checkpoint(layers=1), sharding.make_mesh(devices=jax.devices()[:1])
    extractor = FeatureExtractor(define(checkpoint.config), checkpoint.preprocess, mesh, 8)
    pixels = np.zeros((11, 16, 16, 3), np.uint8).view(Reads)
    pixels.seen = []
    monkeypatch.setattr(sharding, "process_local_indices", lambda mesh, count: np.array([2, 3, 6]))
    place_all = sharding.place_process_local
    zeros = np.zeros((8, 16, 16, 3), np.uint8)
    monkeypatch.setattr(sharding, "place_process_local", lambda m, n, rows: place_all(m, n, zeros))
    extractor.encode_images(sharding.shard_params(checkpoint.params, mesh), pixels)
    read = [np.arange(11)[index].tolist() for index in pixels.seen]
    assert read == [[2, 3, 6], [10, 8, 8]]  # the last batch is filled up with its first image
