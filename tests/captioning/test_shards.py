"""Records survive a kill of the worker, and are found by their keys."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from captioning.shards import (
    UNSHARDED,
    Shard,
    ShardWriter,
    read_records,
    shard_path,
    shard_paths,
)
from lattec_jax.data.descriptions import Record, records, to_line
from lattec_jax.runtime.errors import DataError


def record(image: str, text: str = "a text", key: str = "", error: str = "") -> Record:
    return Record(image, "image", text, key=key or f"key of {image}", error=error)


def write(path, *written: Record):
    with ShardWriter(path) as writer:
        for item in written:
            writer.append(item)
    return path


def test_lines_are_plain_json(tmp_path):
    group = record("b", "two")._replace(members=("b", "ü"))
    path = write(tmp_path / "new" / "d.jsonl", record("ü/1.jpg", "näïve \u2028 text"), group)
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == [
        {"image": "ü/1.jpg", "kind": "image", "text": "näïve \u2028 text", "key": "key of ü/1.jpg"},
        {"image": "b", "kind": "image", "text": "two", "members": ["b", "ü"], "key": "key of b"},
    ]
    assert "ü/1.jpg".encode() in lines[0]  # readable, not escaped


def test_a_last_line_that_was_cut_off_is_dropped(tmp_path):
    path = write(tmp_path / "d.jsonl", record("a", "one"), record("b", "zwei: ü"))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        write(path, record("c", "three"))
        images = [item.image for item in records(path)]
        kept = 0 if end < first - 1 else 1 if end < len(whole) - 1 else 2
        assert images == [*["a", "b"][:kept], "c"], end


def test_every_append_is_on_disk_at_once(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from captioning.shards import ShardWriter\n"
        "from tests.captioning.test_shards import record\n"
        "ShardWriter(Path(sys.argv[1])).append(record('a'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "d.jsonl"
    process = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert process.returncode == -9
    assert [item.image for item in records(path)] == ["a"]


def test_a_malformed_line_stays_as_it_is(tmp_path):
    path = tmp_path / "d.jsonl"
    content = to_line(record("a")) + b"no JSON\n" + to_line(record("b"))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.jsonl:2"):
        ShardWriter(path)
    assert path.read_bytes() == content


def test_a_file_has_one_writer(tmp_path):
    path = tmp_path / "d.jsonl"
    with ShardWriter(path), pytest.raises(DataError, match=r"another process.*--shard"):
        ShardWriter(path)
    write(path, record("a"))


def test_shards_split():
    parts = [part for shard in (Shard(0, 2), Shard(1, 2)) for part in shard.split(3)]
    covered = sorted(i for part in parts for i in range(100)[part.index :: part.count])
    assert covered == list(range(100))
    assert range(100)[0::2][1::3] == range(100)[Shard(0, 2).split(3)[1].index :: 6]


def test_paths_belong_to_one_merged_file(tmp_path):
    merged = tmp_path / "llava-image.jsonl"
    mine = [shard_path(merged, shard) for shard in (UNSHARDED, Shard(3, 8))]
    write(tmp_path / "shards" / "llava-image.x.0-of-1.jsonl")
    write(tmp_path / "shards" / "llava-image2.0-of-1.jsonl")
    for path in mine:
        write(path)
    assert sorted(shard_paths(merged)) == sorted(mine)


def test_texts_take_precedence_over_failures(tmp_path):
    merged = tmp_path / "e-image.jsonl"
    assert read_records(merged) == {}
    write(shard_path(merged, Shard(0, 2)), record("a"), record("b", "", error="no"))
    write(shard_path(merged, Shard(1, 2)), record("a", "", error="no"), record("b", "now"))
    write(merged, record("c"), record("d", "", error="no"))
    found = read_records(merged)
    assert {item.image: item.text for item in found.values()} == {
        "a": "a text", "b": "now", "c": "a text", "d": ""
    }  # fmt: skip
