"""Untrusted files: regular, of bounded size, line length and nesting."""

from __future__ import annotations

import json
import os
import socket
import tracemalloc

import pytest

from lattec_jax.runtime.safe_read import (
    MAX_DEPTH,
    NotRegularFile,
    bounded_lines,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
)


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "good").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "file") == read_bytes(tmp_path / "good") == b"content"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        for name, kind in (("fifo", "FIFO"), ("zero", "character device"), (".", "directory")):
            with pytest.raises(NotRegularFile, match=f"expected a regular file, found a {kind}"):
                open_regular(tmp_path / name)
        with pytest.raises(OSError):
            open_regular(tmp_path / "socket")


def test_the_size_is_bounded(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 11)
    assert len(read_bytes(tmp_path / "file", 11)) == 11
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_bytes(tmp_path / "file", 10)


def test_reading_allocates_the_size_of_the_file_and_not_the_bound(tmp_path):
    (tmp_path / "file").write_bytes(b"ab")
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "file", 2**30) == b"ab"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reported", [0, 3, 200_000, 300_000, 2**40])
def test_the_reported_size_is_only_a_hint(tmp_path, monkeypatch, reported):
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)
    status = os.stat(tmp_path / "file")
    wrong = os.stat_result((*status[:6], reported, *status[7:]))
    monkeypatch.setattr(os, "fstat", lambda descriptor: wrong)
    assert read_bytes(tmp_path / "file", len(content)) == content
    assert read_bytes(tmp_path / "file", 2**20) == content
    with pytest.raises(ValueError, match="more than 255,999 bytes"):
        read_bytes(tmp_path / "file", len(content) - 1)


def test_the_length_of_lines_is_bounded(tmp_path):
    (tmp_path / "file").write_bytes(b"ab\n" + b"x" * 9 + b"\nend")
    with open_regular(tmp_path / "file") as file:
        assert list(bounded_lines(file, 10)) == [b"ab\n", b"x" * 9 + b"\n", b"end"]
        file.seek(0)
        with pytest.raises(ValueError, match="line 2 has more than 9 bytes"):
            list(bounded_lines(file, 9))


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
def test_the_depth_of_json_is_bounded(opening, closing, depth):
    deepest = opening * MAX_DEPTH + "1" + closing * MAX_DEPTH
    assert parse_json(deepest) == json.loads(deepest)
    for text in (opening * depth + "1" + closing * depth, "[1, " + opening * depth):
        with pytest.raises(ValueError):
            parse_json(text)
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        parse_json(opening * depth + "1" + closing * depth)


def test_many_brackets_side_by_side_are_not_deep():
    assert parse_json(json.dumps([[i] for i in range(1000)]))[-1] == [999]


@pytest.mark.parametrize("content", [b"\xff", b"", b"{", b"1" * 5000])
def test_invalid_json_is_a_value_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


def test_the_message_of_a_special_file_names_it_and_has_no_number(tmp_path):
    with pytest.raises(NotRegularFile) as caught:
        open_regular(tmp_path)
    assert str(caught.value) == f"expected a regular file, found a directory: '{tmp_path}'"
