"""Files that are whole or not there, and errors that say why."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from lattec_jax.files import (
    partial_directory,
    partial_file,
    remove_abandoned,
    temporary,
    write_json,
    write_safetensors,
    write_whole,
)
from tests.no_room import no_room


def test_what_the_system_refuses_is_an_error_of_the_system_whatever_the_library_says(tmp_path):
    path = tmp_path / "big.safetensors"
    with no_room(2**12), pytest.raises(OSError, match=r"File too large.*big\.safetensors") as found:
        write_safetensors(path, {"a": np.zeros(2**16, np.float32)})
    assert found.value.errno == errno.EFBIG


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_what_is_written_has_the_permissions_of_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        for _ in range(2):  # anew, and in the place of the first
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


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside(tmp_path):
    write_whole(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a", "\ud800")
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "directory", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"a", "directory"}


WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from lattec_jax.files import partial_directory, partial_file
with partial_file(Path(sys.argv[1]) / "a") as file, partial_directory(Path(sys.argv[1]) / "b") as b:
    file.write(b"half")
    (b / "inside").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(tmp_path)], check=False)
    left = set(tmp_path.iterdir())
    assert len(left) == 2
    (tmp_path / ".mine.partial").write_bytes(b"not of this module")
    with partial_file(tmp_path / "c") as file, partial_directory(tmp_path / "d") as directory:
        assert set(remove_abandoned(tmp_path)) == left
        assert directory.is_dir()
        file.write(b"whole")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        ".mine.partial": b"not of this module",
        "c": b"whole",
    }


def test_temporary_names_follow_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * (2 * count))
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / f".a.{'0' * 16}.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", "new")
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_writing_removes_what_a_killed_writer_of_the_same_name_left(tmp_path):
    own, others = (temporary(tmp_path / name, "0" * 16) for name in ("a", "a.b"))
    for left in (own, others):
        left.write_bytes(b"half")
    write_whole(tmp_path / "a", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a", others.name}
    assert remove_abandoned(tmp_path / "none") == []


def test_names_as_long_as_they_may_be_are_written_and_swept(tmp_path):
    path = tmp_path / ("n" * 255)
    temporary(path, "0" * 16).write_bytes(b"half")
    write_whole(path, "whole")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
