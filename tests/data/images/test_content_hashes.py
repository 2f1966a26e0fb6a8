"""Hashes of image files: right, kept, and taken anew when a file changes."""

from __future__ import annotations

import hashlib
import json
import os

from lattec_jax.data.images.content_hashes import UNREADABLE, content_hashes


def test_hashes_are_those_of_the_files(tmp_path):
    contents = [b"one", b"", b"three" * 100_000]
    paths = [tmp_path / f"{number} ü.jpg" for number in range(3)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    paths.append(tmp_path / "missing")
    found = content_hashes(paths, tmp_path / "new" / "content.json")
    assert found == [*(hashlib.sha256(c).hexdigest() for c in contents), UNREADABLE]


def test_what_is_known_is_not_read_again(tmp_path):
    path, cache = tmp_path / "a.jpg", tmp_path / "content.json"
    path.write_bytes(b"first")
    (first,) = content_hashes([path], cache)
    known = json.loads(cache.read_text())
    known[str(path)][2] = "as it was told"
    cache.write_text(json.dumps(known))
    assert content_hashes([path], cache) == ["as it was told"]
    path.write_bytes(b"other")  # of the same size
    os.utime(path, ns=(0, known[str(path)][1] + 1))
    (other,) = content_hashes([path], cache)
    assert other == hashlib.sha256(b"other").hexdigest() != first
    assert content_hashes([path], cache) == [other]


def test_other_files_stay_known_and_damage_is_repaired(tmp_path):
    cache = tmp_path / "content.json"
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
        content_hashes([tmp_path / name], cache)
    assert len(json.loads(cache.read_text())) == 2
    for damage in ("{", "[]", json.dumps({str(tmp_path / "a"): [1]})):
        cache.write_text(damage)
        assert content_hashes([tmp_path / "a"], cache) == [hashlib.sha256(b"a").hexdigest()]


def test_a_name_that_is_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(path, "wb") as file:
        file.write(b"x")
    for _ in range(2):
        (found,) = content_hashes([os.fsdecode(path)], tmp_path / "content.json")
        assert found == hashlib.sha256(b"x").hexdigest()
