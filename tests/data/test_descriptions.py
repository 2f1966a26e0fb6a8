"""Descriptions on disk: the stated rule of the reader, and a writer that survives being killed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from configs import common
from lattec_jax.data.descriptions import (
    Descriptions,
    Expected,
    Record,
    description_key,
    descriptions_path,
    key_of,
    read,
    records,
    shuffled,
    to_line,
)
from lattec_jax.runtime.errors import DataError


def record(image: str, text: str = "a text", kind: str = "image", **changes) -> Record:
    values = {"engine": "e", "model": "m", "prompt": "p"} | changes
    return Record(image, kind, text, **values)


def write(path: Path, *written: Record) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(map(to_line, written)))
    return path


def test_path():
    config = common.get_config()
    config.dataset.name = "birds"
    assert (
        str(descriptions_path(config, "image")) == "artifacts/birds/descriptions/llava-image.jsonl"
    )
    config.descriptions.group_size = 8
    config.descriptions.group_members = "with_image"
    assert descriptions_path(config, "group").name == "llava-group-of-8.jsonl"
    assert descriptions_path(config, "group_scene").name == "llava-group_scene-of-8.jsonl"
    config.descriptions.correct_per_group = 0
    assert descriptions_path(config, "group").name == "llava-group-of-8-0-correct.jsonl"
    config.descriptions.correct_label = "true"
    name = "llava-group-of-8-0-correct-by-true-label.jsonl"
    assert descriptions_path(config, "group").name == name
    assert descriptions_path(config, "image").name == "llava-image.jsonl"


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


COUNTS = dict.fromkeys(
    ("found", "missing", "empty", "changed", "other_prompt", "duplicate", "unknown_image"), 0
)


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
        "image": COUNTS
        | {"found": 2, "missing": 3, "empty": 2, "duplicate": 2, "unknown_image": 1},
        "group": COUNTS | {"found": 1, "missing": 4},
    }
    content = images.read_bytes() + groups.read_bytes()
    assert found.sha256 == hashlib.sha256(content).hexdigest()


def test_a_kind_without_texts(tmp_path):
    path = write(tmp_path / "d.jsonl", record("x"), record("a", ""))
    with pytest.raises(DataError, match=r"any of the 2 images .*1 are of other images, 1 empty"):
        read([path], ["image"], ["a", "b"])
    with pytest.raises(DataError, match=r"no descriptions at .*captioning\.describe --config"):
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
    assert "d.jsonl:2: dropped an incomplete line" in caplog.text


def test_records_round_trip(tmp_path):
    written = [
        Record("a", "image", "t"),
        Record("b", "group", "", *"empd", ("b", "c"), "note", "key", "error"),
        Record("caf\udce9.jpg", "image", "a name that is not UTF-8"),
    ]
    assert list(records(write(tmp_path / "d.jsonl", *written))) == written


def test_mixed_sources_are_refused(tmp_path):
    path = write(tmp_path / "d.jsonl", record("a"), record("b"), record("a", model="other"))
    with pytest.raises(DataError, match=r"2 different sources \(1 of e \| other \| ; 1 of e \| m"):
        read([path], ["image"], ["a", "b"])
    assert read([path], ["image"], ["a"]).texts["image"] == ["a text"]  # the other is not used


def test_every_part_of_a_key_counts():
    parts = ["image", "a prompt", "e", "m", "d"]
    keys = {description_key(*parts, ["1", "2"])}
    for place in range(5):
        changed = [*parts]
        changed[place] += "x"
        keys.add(description_key(*changed, ["1", "2"]))
    keys |= {description_key(*parts, contents) for contents in (["2", "1"], ["1"], ["1", "3"], [])}
    assert len(keys) == 10 and {len(key) for key in keys} == {32}


def test_what_is_out_of_date_counts_as_missing(tmp_path):
    contents = {"a": "1", "b": "2", "c": "3", "d": "4"}

    def keyed(image: str, kind: str = "image", **changes) -> Record:
        found = record(image, kind=kind, **changes)
        return found._replace(key=key_of(found, [contents[m] for m in found.members or (image,)]))

    path = write(
        tmp_path / "d.jsonl",
        keyed("a"),
        keyed("b"),
        keyed("c", prompt="old"),
        record("d", prompt="of another captioner, whose lines have no key"),
        keyed("a", kind="group", members=("a", "d")),
        keyed("d", kind="group", members=("d", "b")),
    )
    prompts = {"image": ["p"] * 4, "group": ["p"] * 4}
    now = Expected(["1", "changed", "3", "4"], prompts)
    found = read([path], ["image", "group"], list(contents), now)
    assert found.texts["image"] == ["a text", None, None, "a text"]
    assert found.texts["group"] == ["a text", None, None, None]
    assert found.counts["image"] == COUNTS | {
        "found": 2, "missing": 2, "changed": 1, "other_prompt": 1
    }  # fmt: skip
    assert found.counts["group"] == COUNTS | {"found": 1, "missing": 3, "changed": 1}
    assert read([path], ["image"], list(contents)).counts["image"]["found"] == 4


def test_members_that_are_no_training_images(tmp_path):
    path = write(tmp_path / "d.jsonl", record("a", kind="group", members=("a", "x")))
    with pytest.raises(DataError, match="the group description of 'a' with 'x'"):
        read([path], ["group"], ["a"])


def test_notes_are_handed_on(tmp_path):
    path = write(tmp_path / "d.jsonl", record("a", note="an analysis"), record("b"))
    assert read([path], ["image"], ["a", "b"]).notes == ("an analysis",)


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


@pytest.mark.full
def test_many_lines(tmp_path):
    """A million take some ten seconds; a reader that is quadratic would not finish these."""
    ids = [f"train/class_{n % 10}/{n}.jpg" for n in range(50_000)]
    path = write(tmp_path / "d.jsonl", *(record(image, f"text {image}") for image in ids))
    found = read([path], ["image"], ids[::-1])
    assert found.texts["image"] == [f"text {image}" for image in ids[::-1]]
