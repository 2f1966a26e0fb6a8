"""Tensor files that are damaged, hostile or of an unsupported type."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lattec_jax.models import run_artifacts, tensor_files
from lattec_jax.models.tensor_files import read_safetensors, refuse_not_finite
from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.safe_read import open_regular


def write(path: Path, kind: str, shape: list[int], data: bytes) -> Path:
    """Write a file with one tensor `w` of any type."""
    header = {"w": {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_bfloat16_is_read_in_its_type(tmp_path):
    values = np.array([[1.5, -2.0, 1e30]], ml_dtypes.bfloat16)
    path = write(tmp_path / "w.safetensors", "BF16", [1, 3], values.tobytes())
    found = read_safetensors(path)["w"]
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_other_types_are_named(kind, tmp_path):
    path = write(tmp_path / "w.safetensors", kind, [3], b"abc")
    with pytest.raises(WeightsError, match=rf"found w \({kind}\); choose .* not quantized"):
        read_safetensors(path)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_finiteness_of_every_16_bit_number_is_that_of_numpy(kind):
    numbers = np.arange(2**16, dtype=np.uint16).view(kind)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(numbers)
    assert tensor_files._is_finite(numbers[finite])
    for number in numbers[~finite]:
        assert not tensor_files._is_finite(np.array([number]))


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_numbers_that_are_not_finite_are_found_in_every_chunk(kind, value, place, monkeypatch):
    monkeypatch.setattr(tensor_files, "_CHUNK", 4)
    array = np.zeros((5, 2), kind)
    refuse_not_finite({"good": array, "ids": np.array([2**40])}, "FILE")
    array[place // 2, place % 2] = value
    for form in (array, array.T, array[::-1]):
        with pytest.raises(
            WeightsError, match=r"FILE: expected finite numbers, .* infinity in bad;"
        ):
            refuse_not_finite({"good": np.zeros(3), "bad": form}, "FILE")


def test_files_with_non_finite_numbers_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"w": np.array([1, np.nan], np.float32)}, path)
    with pytest.raises(WeightsError, match=r"w\.safetensors: expected finite numbers.* in w;"):
        read_safetensors(path)


def test_the_header_is_checked_before_tensors_are_read(tmp_path):
    path = write(tmp_path / "w.safetensors", "F32", [1], np.float32([np.nan]).tobytes())
    seen = []

    def check(shapes) -> None:
        seen.append(dict(shapes))
        raise WeightsError("other shapes")

    with pytest.raises(WeightsError, match="other shapes"):
        read_safetensors(path, check)
    assert seen == [{"w": (1,)}]


def test_errors_give_the_reason(tmp_path, monkeypatch):
    fifo = tmp_path / "w.safetensors"
    os.mkfifo(fifo)
    with pytest.raises(WeightsError, match="expected a regular file, found a FIFO"):
        read_safetensors(fifo)
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        read_safetensors(tmp_path / "none")

    def forbidden(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(WeightsError, match="cannot be read: Permission denied"):
        read_safetensors(fifo)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 20, b"\xff" * 8, (2**60).to_bytes(8, "little"), b"\x02" + b"\0" * 7 + b"[]"],
)
def test_damaged_files(content, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a readable"):
        read_safetensors(path)


def test_declared_sizes_without_data_are_refused(tmp_path):
    path = write(tmp_path / "w.safetensors", "F32", [10**12, 10**12], b"1234")
    with pytest.raises(WeightsError, match="not a readable"):
        read_safetensors(path)


def read_as_classifier(path: Path) -> None:
    """Read the file as the classifier of a run."""
    path.rename(path.parent / "classifier.safetensors")
    run_artifacts.load(path.parent)


@pytest.mark.parametrize("read", [read_safetensors, read_as_classifier])
@pytest.mark.parametrize(
    "shape", [[0, 2**63], [0, 2**64 - 1], [0, 2**62, 2**62], [1] * 65, [0, 2**40, 2**40]]
)
def test_shapes_that_numpy_cannot_make_are_refused(read, shape, tmp_path):
    path = write(tmp_path / "w.safetensors", "F32", shape, b"" if 0 in shape else b"1234")
    with pytest.raises(WeightsError, match=r"expected tensors of at most 8 dim.*found w|not a rea"):
        read(path)


def test_empty_tensors_are_read(tmp_path):
    path = write(tmp_path / "w.safetensors", "F32", [0, 3], b"")
    assert read_safetensors(path)["w"].shape == (0, 3)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="there is no path to a descriptor")
def test_the_file_that_was_checked_is_read(tmp_path, monkeypatch):
    """Even if another file takes its name meanwhile."""
    path = write(tmp_path / "w.safetensors", "F32", [1], np.float32([1]).tobytes())
    other = write(tmp_path / "other", "F32", [1], np.float32([2]).tobytes())

    def swapping(name: Path):
        opened = open_regular(name)
        os.replace(other, name)
        return opened

    monkeypatch.setattr(tensor_files, "open_regular", swapping)
    assert read_safetensors(path)["w"] == 1
