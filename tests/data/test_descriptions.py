"""Descriptions on disk: the stated rule of the reader, and a writer that survives being killed."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter

import pytest

from configs import common
from lattec_jax.data.descriptions import (
    Descriptions,
    DescriptionWriter,
    Record,
    descriptions_path,
    read,
    shuffled,
)
from lattec_jax.errors import ConfigError, DataError


def record(image: str, text: str = "a text", kind: str = "image", **changes) -> Record:
    values = {"engine": "e", "model": "m", "prompt": "p"} | changes
    return Record(image, kind, text, **values)


def write(path, *records: Record):
    with DescriptionWriter(path) as writer:
        for item in records:
            writer.append(item)
    return path


def test_path():
    config = common.get_config()
    config.dataset.name = "birds"
    assert (
        str(descriptions_path(config, "image")) == "artifacts/birds/descriptions/llava-image.jsonl"
    )
    with pytest.raises(ConfigError, match=r"found '\.\./image'"):
        descriptions_path(config, "../image")


def test_lines_are_plain_json(tmp_path):
    group = record("b", "two", "group", members=("b", "ü"))
    path = write(tmp_path / "new" / "d.jsonl", record("ü/1.jpg", "näïve \u2028 text"), group)
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    source = {"engine": "e", "model": "m", "prompt": "p"}
    assert [json.loads(line) for line in lines] == [
        {"image": "ü/1.jpg", "kind": "image", "text": "näïve \u2028 text", **source},
        {"image": "b", "kind": "group", "text": "two", **source, "members": ["b", "ü"]},
    ]
    assert "ü/1.jpg".encode() in lines[0]  # readable, not escaped


def test_the_rule(tmp_path):
    images = write(
        tmp_path / "image.jsonl",
        record("a", "old"),
        record("b", "kept"),
        record("stranger"),
        record("c", " \n"),
        record("a", "new"),
        record("d", "was there"),
        record("d", ""),
        record("a", "of another kind", kind="other"),
    )
    groups = write(tmp_path / "group.jsonl", record("d", " last ", "group", members=("d", "a")))
    found = read([images, groups], ["group", "image"], ["d", "b", "a", "c", "e"])
    assert found.kinds == ("group", "image")
    assert found.texts == {
        "image": [None, "kept", "new", None, None],
        "group": ["last", None, None, None, None],
    }
    assert found.counts == {
        "image": {"found": 2, "missing": 3, "empty": 2, "duplicate": 2, "unknown_image": 1},
        "group": {"found": 1, "missing": 4, "empty": 0, "duplicate": 0, "unknown_image": 0},
    }
    content = images.read_bytes() + groups.read_bytes()
    assert found.sha256 == hashlib.sha256(content).hexdigest()


def test_a_kind_without_texts(tmp_path):
    path = write(tmp_path / "d.jsonl", record("x"), record("a", ""))
    with pytest.raises(DataError, match=r"any of the 2 images .*1 are of other images, 1 empty"):
        read([path], ["image"], ["a", "b"])
    with pytest.raises(DataError, match=r"captioning\.describe --config=\.\.\. --kind=group"):
        read([tmp_path / "llava-group.jsonl"], ["group"], ["a"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "not an object"),
        ('{"image": "a", "kind": "image"}', "text is missing"),
        ('{"image": 1, "kind": "image", "text": ""}', "image is missing or not a string"),
        ('{"image": "a", "kind": "image", "text": "", "members": "b"}', "members is not a list"),
        ('{"image": "a", "kind": "image", "text": "", "model": null}', "model is missing"),
    ],
)
def test_malformed_lines(tmp_path, line, reason):
    path = write(tmp_path / "d.jsonl", record("a"))
    good = path.read_text(encoding="utf-8")
    path.write_text(f"{good}\n{line}\n{good}", encoding="utf-8")
    with pytest.raises(DataError, match=rf"d\.jsonl:3: expected a JSON object.*{reason}"):
        read([path], ["image"], ["a"])
    with pytest.raises(DataError, match=r"d\.jsonl:3"):
        DescriptionWriter(path)
    assert path.read_text(encoding="utf-8") == f"{good}\n{line}\n{good}"


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'{"image": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"d\.jsonl:1"):
        read([tmp_path / "d.jsonl"], ["image"], ["a"])


def test_a_last_line_that_was_cut_off(tmp_path, caplog):
    path = write(tmp_path / "d.jsonl", record("a", "one"), record("b", "zwei: ü"))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        complete = end == len(whole) - 1  # all but the line break
        texts = read([path], ["image"], ["a", "b"]).texts["image"]
        assert texts == ["one", "zwei: ü" if complete else None]
        with DescriptionWriter(path) as writer:
            done = writer.done("image", "p", "e", "m")
            assert set(done) == ({"a", "b"} if complete else {"a"})
            writer.append(record("c", "three"))
        assert read([path], ["image"], ["a", "b", "c"]).texts["image"] == [*texts, "three"]
    assert "d.jsonl:2: dropped a line that was cut off" in caplog.text


def test_done_looks_at_the_newest_record(tmp_path):
    write(
        tmp_path / "d.jsonl",
        record("a"),
        record("b"),
        record("b", prompt="other"),
        record("c", kind="group", members=("c", "x")),
        record("c", kind="group", members=("c", "y")),
        record("d", ""),
    )
    with DescriptionWriter(tmp_path / "d.jsonl") as writer:
        assert writer.done("image", "p", "e", "m") == {"a": (), "d": ()}
        assert writer.done("image", "other", "e", "m") == {"b": ()}
        assert writer.done("group", "p", "e", "m") == {"c": ("c", "y")}
        assert writer.done("image", "p", "e", "m2") == {}
        writer.append(record("b"))
        assert set(writer.done("image", "p", "e", "m")) == {"a", "b", "d"}


def test_flush_reaches_the_file(tmp_path):
    writer = DescriptionWriter(tmp_path / "d.jsonl")
    writer.append(record("a"))
    writer.flush()
    assert read([tmp_path / "d.jsonl"], ["image"], ["a"]).counts["image"]["found"] == 1
    writer.close()


def test_mixed_prompts_are_pointed_out(tmp_path, caplog):
    path = write(tmp_path / "d.jsonl", record("a"), record("b"), record("a", prompt="other"))
    read([path], ["image"], ["a", "b"])
    assert "2 different engines, models or prompts" in caplog.text
    caplog.clear()
    read([path], ["image"], ["a"])  # what was replaced does not count
    assert not caplog.text


def test_shuffled():
    texts = {
        "image": [f"i{n}" if n % 5 else None for n in range(200)],
        "group": [f"g{n}" for n in range(200)],
    }
    original = Descriptions(("image", "group"), {k: list(v) for k, v in texts.items()}, {}, "x")
    control = shuffled(original, seed=0)
    assert original.texts == texts
    for kind, column in control.texts.items():
        assert Counter(column) == Counter(texts[kind])
        assert sum(a == b for a, b in zip(column, texts[kind], strict=True)) < 20
    image = [control.texts["image"].index(f"i{n}") for n in range(1, 5)]
    group = [control.texts["group"].index(f"g{n}") for n in range(1, 5)]
    assert image != group
    assert shuffled(original, seed=0) == control != shuffled(original, seed=1)
    assert (control.kinds, control.counts, control.sha256) == (original.kinds, {}, "x")


def test_many_lines(tmp_path):
    """A million take some ten seconds; a reader that is quadratic would not finish these."""
    ids = [f"train/class_{n % 10}/{n}.jpg" for n in range(50_000)]
    path = write(tmp_path / "d.jsonl", *(record(image, f"text {image}") for image in ids))
    start = time.perf_counter()
    found = read([path], ["image"], ids[::-1])
    assert time.perf_counter() - start < 5
    assert found.texts["image"][0] == f"text {ids[-1]}"
