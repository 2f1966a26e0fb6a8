"""Atomic writes: complete or absent files and directories, and clear errors."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from lattec_jax.runtime import files
from lattec_jax.runtime.files import (
    partial_directory,
    partial_file,
    partial_path,
    remove_abandoned,
    replace_directory,
    write_atomic,
    write_json,
    write_safetensors,
)
from tests.no_room import no_room


def test_a_failed_write_of_safetensors_is_an_oserror(tmp_path):
    path = tmp_path / "big.safetensors"
    with no_room(2**12), pytest.raises(OSError, match=r"File too large.*big\.safetensors") as found:
        write_safetensors(path, {"a": np.zeros(2**16, np.float32)})
    assert found.value.errno == errno.EFBIG


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_written_files_have_the_permissions_of_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        for _ in range(2):  # a new file, then a replacement
            write_safetensors(tmp_path / "a.safetensors", {"a": np.arange(3.0)})
            write_json(tmp_path / "b.json", {})
            assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {mode}
    finally:
        os.umask(before)


def test_tensors_keep_their_metadata(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.arange(3.0)}, {"format": "pt"})
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["a"], [0, 1, 2])
    with safetensors.safe_open(path, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_failed_write_leaves_the_old_file_and_no_temporary_file(tmp_path):
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "a", "\ud800")
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "directory", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"a", "directory"}


WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from lattec_jax.runtime.files import partial_directory, partial_file
with partial_file(Path(sys.argv[1]) / "a") as file, partial_directory(Path(sys.argv[1]) / "b") as b:
    file.write(b"half")
    (b / "inside").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_only_temporary_files_of_killed_processes_are_removed(tmp_path):
    subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(tmp_path)], check=False)
    left = set(tmp_path.iterdir())
    assert len(left) == 2
    (tmp_path / ".mine.partial").write_bytes(b"not of this module")
    with partial_file(tmp_path / "c") as file, partial_directory(tmp_path / "d") as directory:
        assert set(remove_abandoned(tmp_path)) == left
        assert directory.is_dir()
        file.write(b"complete")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        ".mine.partial": b"not of this module",
        "c": b"complete",
    }


def test_temporary_names_do_not_follow_links(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * (2 * count))
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / f".a.{'0' * 16}.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_writing_removes_temporary_files_of_the_same_name(tmp_path):
    own, others = (partial_path(tmp_path / name, "0" * 16) for name in ("a", "a.b"))
    for left in (own, others):
        left.write_bytes(b"half")
    write_atomic(tmp_path / "a", "complete")
    assert {p.name for p in tmp_path.iterdir()} == {"a", others.name}
    assert remove_abandoned(tmp_path / "none") == []


def test_names_of_maximal_length_are_written_and_removed(tmp_path):
    path = tmp_path / ("n" * 255)
    partial_path(path, "0" * 16).write_bytes(b"half")
    write_atomic(path, "complete")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


SWEEP = """
import sys
from pathlib import Path
from lattec_jax.runtime.files import remove_abandoned
print("ready", flush=True)
while not (Path(sys.argv[1]) / "stop").exists():
    remove_abandoned(Path(sys.argv[1]))
"""


def test_files_in_use_are_not_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    command = [sys.executable, "-c", SWEEP, str(tmp_path)]
    sweepers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for sweeper in sweepers:
            sweeper.stdout.readline()
        for number in range(300):
            with partial_file(tmp_path / "a") as file:
                file.write(b"%d" % number)
            if number % 10 == 0:
                with partial_directory(tmp_path / "b") as directory:
                    (directory / "inside").write_bytes(b"x")
    finally:
        (tmp_path / "stop").touch()
        assert [sweeper.wait() for sweeper in sweepers] == [0, 0]
        for sweeper in sweepers:
            sweeper.stdout.close()
    assert {p.name for p in tmp_path.iterdir()} == {"a", "stop"}


def test_a_writer_waits_for_a_process_that_removes_files(tmp_path, monkeypatch):
    """Another process locks and deletes the file after it was created and before it is locked."""
    lock, deleted = fcntl.flock, []

    def delete(*_):
        deleted.extend(tmp_path.glob(".a.*.partial"))
        deleted[0].unlink()

    def flock(descriptor, operation):
        if not deleted and operation & fcntl.LOCK_NB:  # the writer does not wait
            monkeypatch.setattr(os, "fsync", delete)
            raise BlockingIOError
        if not deleted:
            delete()
        lock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", flock)
    write_atomic(tmp_path / "a", "complete")
    assert deleted and (tmp_path / "a").read_text() == "complete"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    code = errno.EBADF

    def refuse(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    young, old = (partial_path(tmp_path / "a", digit * 16) for digit in "01")
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    write_atomic(tmp_path / "a", "complete")
    assert {p.name for p in tmp_path.iterdir()} == {"a", young.name}
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output error"), partial_file(tmp_path / "b"):
        pass
    assert not list(tmp_path.glob(".b*"))


def make_directory(path, content):
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


@pytest.fixture(params=[True, False], ids=["exchange", "no exchange"])
def exchange(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return request.param


def test_a_directory_is_replaced(exchange, tmp_path):
    target = tmp_path / "model"
    for content in ("first", "second"):
        with partial_directory(target) as scratch:
            replace_directory(make_directory(scratch / "new", content), target)
        assert (target / "file").read_text() == content
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (tmp_path / "other").write_text("file")
    for found in (tmp_path / "other", tmp_path / "link"):
        with pytest.raises(NotADirectoryError):
            (tmp_path / "link").unlink(missing_ok=True)
            (tmp_path / "link").symlink_to(target)
            replace_directory(make_directory(tmp_path / f"new-{found.name}", "third"), found)
    assert (tmp_path / "other").read_text() == "file" and (tmp_path / "link").is_symlink()


def test_a_directory_that_cannot_be_replaced_stays(exchange, tmp_path):
    target = make_directory(tmp_path / "model", "first")
    with pytest.raises(OSError):
        replace_directory(tmp_path / "none", target)
    assert (target / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("moment", ["absent", "moved away", "there again"])
def test_two_processes_may_replace_a_directory_at_the_same_time(
    exchange, moment, tmp_path, monkeypatch
):
    target, new = tmp_path / "model", make_directory(tmp_path / "new", "second")
    rename, seen = os.rename, []
    if moment == "moved away":
        make_directory(target, "first")

    def renamed(source, to):
        seen.append(to)
        if moment == "absent" and len(seen) == 1:
            make_directory(target, "other")
        if moment == "moved away" and len(seen) == 1:
            rename(target, tmp_path / "taken")
        if moment == "there again" and len(seen) == 2:
            make_directory(target, "other")
        rename(source, to)

    if moment == "there again":
        make_directory(target, "first")
    monkeypatch.setattr(os, "rename", renamed)
    replace_directory(new, target)
    assert (target / "file").read_text() == "second"
    assert not list(tmp_path.glob(".*"))


REPLACE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from lattec_jax.runtime import files
if sys.argv[2] == "no exchange":
    files._exchange = lambda one, other: False
target, count = Path(sys.argv[1]) / "model", 0
def hook(event, arguments):
    global count
    if event in ("os.rename", "os.remove", "os.rmdir"):
        count += 1
        if count == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
with files.partial_directory(target) as scratch:
    (scratch / "new").mkdir()
    (scratch / "new" / "file").write_text("second")
    sys.addaudithook(hook)
    files.replace_directory(scratch / "new", target)
"""


@pytest.mark.parametrize("how, kills", [("exchange", 3), ("no exchange", 4)])
def test_a_kill_while_a_directory_is_replaced_loses_nothing(how, kills, tmp_path):
    for kill_at in range(1, kills + 1):
        place = tmp_path / str(kill_at)
        target = make_directory(place / "model", "first")
        command = [sys.executable, "-c", REPLACE_AND_DIE, str(place), how, str(kill_at)]
        assert subprocess.run(command, check=False).returncode < 0
        remove_abandoned(place, "model")
        if how == "exchange":
            assert (target / "file").read_text() in ("first", "second")
        contents = {path.read_text() for path in place.rglob("file")}
        assert contents & {"first", "second"}, kill_at
        if kill_at == 2 and how == "no exchange":
            (aside,) = place.glob(".model.*.old")
            assert (aside / "file").read_text() == "first"


def test_temporary_files_of_earlier_versions_are_removed_after_a_day(tmp_path):
    old = ["results.json.123.partial", "hosts-77.partial", ".partial-ab_c1234/x"]
    named = [".model.ab_c1234/x", "model.123.tmp/x", "model.123.partial"]
    others = ["data.zip.123.partial", ".other.abcd1234/x", ".model.abcd1234.old/x", "a.tmp", "m.1"]
    for name in (*old, *named, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    assert remove_abandoned(tmp_path) == remove_abandoned(tmp_path, "model") == []
    for path in (*tmp_path.rglob("*"),):
        os.utime(path, (time.time() - 25 * 3600,) * 2)
    tops = [{tmp_path / name.split("/")[0] for name in names} for names in (old, named)]
    assert set(remove_abandoned(tmp_path)) == tops[0]
    assert set(remove_abandoned(tmp_path, "model")) == tops[1]
    assert all((tmp_path / name).exists() for name in others)
