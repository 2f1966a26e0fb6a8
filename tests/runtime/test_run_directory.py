"""The work directory: which run may use it, its lock, and resuming."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from ml_collections import ConfigDict

from configs.common import get_config
from lattec_jax.runtime import run_directory
from lattec_jax.runtime.config import flatten
from lattec_jax.runtime.errors import ConfigError

RECORD = {"weights_sha256": "ab", "class_names": ["cat", "dog"], "batch_size": 8}


def config(**changes) -> ConfigDict:
    values = {"seed": 0, "template": "a photo of a {}.", "method": {"texts": ("class", "image")}}
    return ConfigDict({**values, **changes})


def test_a_run_with_the_same_configuration_resumes(tmp_path):
    workdir = tmp_path / "runs" / "one"
    run_directory.acquire(workdir, config(), RECORD)
    assert json.loads((workdir / "config.json").read_text())["method"]["texts"] == [
        "class",
        "image",
    ]
    run_directory.acquire(workdir, config(), RECORD)


def test_another_configuration_is_refused_and_the_keys_are_listed(tmp_path):
    run_directory.acquire(tmp_path, config(), RECORD)
    before = (tmp_path / "config.json").read_bytes()
    other = config(seed=1, method={"texts": ("class",)}, extra=3)
    with pytest.raises(ConfigError) as refused:
        run_directory.acquire(tmp_path, other, RECORD)
    message = str(refused.value)
    assert "seed: was 0, is now 1" in message
    assert "method.texts: was ['class', 'image'], is now ['class']" in message
    assert "extra: was '(absent)', is now 3" in message
    assert "template" not in message
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        ("eight\nnine\n", "eight\nnein\n", "now without 'nine', with 'nein'"),
        ("one\ntwo\nthree", "one\n three", "now without 'two'"),
        ("one\n", "\ufeffone\ntwo | 2\n", "now with 'two | 2'"),
        ("one\ntwo", "two\none", "now in another order"),
        ("\n".join("abcdefg"), "a\n", "now without 'b', 'c', 'd', 'e', 'f' and 1 more"),
        ("one\ntwo\n", "one\n\ntwo", None),  # another file with the same names
        ("one\n", None, None),
        (None, "one\n", None),
        ("one\n", b"\xff\n", None),
    ],
)
def test_the_class_names_that_differ_are_listed(tmp_path, before, now, line):
    """The first file is named by its absolute path, the second relative to the images."""
    (tmp_path / "images").mkdir()
    files = tmp_path / "first.txt", tmp_path / "images/second.txt"
    for file, content in zip(files, (before, now), strict=True):
        if content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
    root = str(tmp_path / "images")
    configs = [
        config(dataset={"root": root, "class_names": name})
        for name in (str(files[0]), "second.txt")
    ]
    run_directory.acquire(tmp_path / "run", configs[0], RECORD)
    with pytest.raises(ConfigError) as refused:
        run_directory.check_available(tmp_path / "run", configs[1])
    listed = str(refused.value).splitlines()[1:]
    assert listed[0].startswith("  dataset.class_names: was '") and "second.txt" in listed[0]
    assert listed[1:] == ([f"  class names: {line}"] if line else [])


def test_some_keys_may_change_on_resume(tmp_path):
    assert {key for key, _ in flatten(get_config())} >= run_directory.MAY_CHANGE_ON_RESUME
    run_directory.acquire(tmp_path, config(compute={"fsdp": 1}), RECORD)
    before = (tmp_path / "config.json").read_bytes()
    run_directory.acquire(tmp_path, config(compute={"fsdp": 8, "remat": True}), RECORD)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="is not empty and is not a work directory"):
        run_directory.check_available(tmp_path, config())
    with pytest.raises(ConfigError, match="is not empty and is not a work directory"):
        run_directory.acquire(tmp_path, config(), RECORD)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_checking_writes_nothing(tmp_path):
    run_directory.check_available(tmp_path / "new", config())
    assert not (tmp_path / "new").exists()


def test_temporary_files_of_a_killed_process_are_ignored(tmp_path):
    (tmp_path / "config.partial").write_text("{")
    run_directory.acquire(tmp_path, config(), RECORD)
    assert (tmp_path / "config.json").exists()


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"is not empty and is not a work directory"):
        run_directory.acquire(tmp_path / "file", config(), RECORD)
    with pytest.raises(ConfigError, match="cannot write the work directory"):
        run_directory.acquire(tmp_path / "file" / "below", config(), RECORD)


def test_a_damaged_configuration_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
        run_directory.check_available(tmp_path, config())


def test_other_inputs_are_refused_and_listed(tmp_path):
    run_directory.acquire(tmp_path, config(), RECORD)
    run_directory.check_same_inputs(tmp_path, RECORD)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ConfigError) as refused:
        run_directory.acquire(tmp_path, config(), {**RECORD, "class_names": ["dog", "cat"]})
    assert "class_names: was ['cat', 'dog'], is now ['dog', 'cat']" in str(refused.value)
    assert str(refused.value).endswith("\n  class names: now in another order")
    assert "weights_sha256" not in str(refused.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    run_directory.check_same_inputs(tmp_path / "new", RECORD)  # a new directory


def test_the_numbers_of_images_are_listed_but_not_required(tmp_path):
    counted = {**RECORD, "n_train": 300, "n_test": 0}
    run_directory.acquire(tmp_path / "without", config(), RECORD)
    run_directory.check_same_inputs(tmp_path / "without", counted)
    run_directory.acquire(tmp_path / "with", config(), counted)
    with pytest.raises(ConfigError, match="n_train: was 300, is now 301"):
        run_directory.check_same_inputs(tmp_path / "with", {**counted, "n_train": 301})


def locked(path) -> int:
    """Lock a file as another process would: each descriptor from `open` has a separate lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    run_directory.write_json(tmp_path / "inputs.json", RECORD)
    other = locked(tmp_path / run_directory.LOCK)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for attempt in (
        lambda: run_directory.check_available(tmp_path, config()),
        lambda: run_directory.acquire(tmp_path, config(), RECORD),
    ):
        with pytest.raises(ConfigError, match="another process works in"):
            attempt()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    os.close(other)  # as the end of the process does, also by SIGKILL; the file stays
    run_directory.acquire(tmp_path, config(), RECORD)
    with pytest.raises(BlockingIOError):
        locked(tmp_path / run_directory.LOCK)
    run_directory.acquire(tmp_path, config(), RECORD)  # the process that holds the lock


def test_a_second_thread_is_refused_and_releases_nothing(tmp_path):
    run_directory.acquire(tmp_path, config(), RECORD)

    def attempt(function, *arguments) -> BaseException | None:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function, *arguments).exception()

    for function, arguments in (
        (run_directory.check_available, (tmp_path, config())),
        (run_directory.acquire, (tmp_path, config(), RECORD)),
    ):
        error = attempt(function, *arguments)
        assert isinstance(error, ConfigError) and "another thread of this one" in str(error)
    assert attempt(run_directory.release, tmp_path) is None
    with pytest.raises(BlockingIOError):
        locked(tmp_path / run_directory.LOCK)
    run_directory.release(tmp_path)
    assert attempt(run_directory.acquire, tmp_path, config(), RECORD) is None


def test_a_file_system_without_locks_leads_to_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run_directory.acquire(tmp_path, config(), RECORD)
    assert (tmp_path / "config.json").exists()
    assert caplog.text.count("has no locks (Function not implemented)") == 1


@pytest.mark.parametrize("content", ["[1]", "{", "3"])
def test_damaged_inputs_are_an_error(tmp_path, content):
    run_directory.acquire(tmp_path, config(), RECORD)
    (tmp_path / "inputs.json").write_text(content)
    with pytest.raises(ConfigError, match=r"inputs\.json.*restore the run's own file"):
        run_directory.check_same_inputs(tmp_path, RECORD)


def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from ml_collections import ConfigDict\n"
        "from lattec_jax.runtime import run_directory\n"
        "run_directory.acquire(Path(sys.argv[1]), ConfigDict({'seed': 0}), {})\n"
        "print('acquired', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"acquired\n"
        with pytest.raises(ConfigError, match="another process works in"):
            run_directory.check_available(tmp_path, ConfigDict({"seed": 0}))
        process.kill()
    run_directory.check_available(tmp_path, ConfigDict({"seed": 0}))
    run_directory.acquire(tmp_path, ConfigDict({"seed": 0}), {})


def test_another_process_joins_only_with_the_same_inputs(tmp_path):
    run_directory.acquire(tmp_path, config(), RECORD)
    run_directory.check_acquired(tmp_path, config(), RECORD)
    with pytest.raises(ConfigError, match=r"(?s)same weights and images.*seed: was 0, is now 1"):
        run_directory.check_acquired(tmp_path, config(seed=1), RECORD)
    with pytest.raises(ConfigError, match="weights_sha256: was 'ab', is now 'cd'"):
        run_directory.check_acquired(tmp_path, config(), {**RECORD, "weights_sha256": "cd"})


def test_a_fifo_instead_of_the_lock_does_not_block(tmp_path):
    place = tmp_path / "run"
    run_directory.acquire(place, config(), RECORD)
    script = (
        "import os, sys, pathlib; from lattec_jax.runtime import run_directory; "
        "from lattec_jax.runtime.config import "
        "from_json\n"
        "place = pathlib.Path(sys.argv[1]); (place / 'lock').unlink(); os.mkfifo(place / 'lock')\n"
        "run_directory.check_available(place, from_json(place / 'config.json'))"
    )
    subprocess.run([sys.executable, "-c", script, place], check=True, timeout=60)
