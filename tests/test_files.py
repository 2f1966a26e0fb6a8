"""Files that are whole or not there, and errors that say why."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import safetensors.numpy

from lattec_jax.files import write_safetensors, write_whole
from tests.no_room import no_room


def test_what_the_system_refuses_is_an_error_of_the_system_whatever_the_library_says(tmp_path):
    path = tmp_path / "big.safetensors"
    with no_room(2**12), pytest.raises(OSError, match=r"File too large.*big\.safetensors") as found:
        write_safetensors(path, {"a": np.zeros(2**16, np.float32)})
    assert found.value.errno == errno.EFBIG


def test_tensors_can_be_read_by_all_and_keep_their_metadata(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.arange(3.0)}, {"format": "pt"})
    assert path.stat().st_mode & 0o777 == 0o644
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
