"""Stored texts: valid, one line, bounded; and a record for each image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from captioning import describe as command
from captioning.describe import describe
from captioning.engines import MAX_TEXT_CHARS, Failure, Identity, clean_result
from captioning.shards import read_records
from captioning.tasks import Task
from lattec_jax.data.descriptions import descriptions_path
from lattec_jax.data.images.content_hashes import UNREADABLE
from tests.captioning.ruler import IDS, Ruler, write_config_file


class Saying(Ruler):
    """Returns the same text for every image."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def describe(self, requests):
        for request, _ in super().describe(requests):
            yield request, self.answer


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("a\ud83d\udc00 dog", "a\ufffd\ufffd dog"),
        ("\x1b[31ma\0 \x9bdog\r\n\x85here", "[31ma dog here"),
        ("cafe\u0301", "caf\u00e9"),
        (" \n ", ""),
        ("x" * MAX_TEXT_CHARS, "x" * MAX_TEXT_CHARS),
        ("x \n" * 2000, "x " * 1999 + "x"),
    ],
)
def test_texts_are_valid_where_they_enter(config, answer, written):
    assert clean_result(answer) == written
    describe(config, ["image"], Saying(answer))
    path = descriptions_path(config, "image")
    assert {record.text for record in read_records(path).values()} == {written}


@pytest.mark.parametrize("answer", ["x" * (MAX_TEXT_CHARS + 1), "x" * 10**7, "\ufdfa " * 3000])
def test_longer_texts_are_failures(answer):
    assert clean_result(answer) == Failure("the text has more than 4,000 characters")


def test_reasons_are_valid_and_cut():
    found = clean_result(Failure("a\ud83d\x1b[2J\n" + "b" * 5_000_000))
    assert found.reason.startswith("a\ufffd[2J bbb") and len(found.reason) < 1100


def test_a_reason_of_five_megabytes_is_written_short(config):
    class Mixed(Ruler):
        def describe(self, requests):
            for number, (request, text) in enumerate(super().describe(requests)):
                yield request, text if number else Failure("b" * 5_000_000)

    describe(config, ["image"], Mixed())
    (shard,) = (descriptions_path(config, "image").parent / "shards").glob("*.jsonl")
    assert shard.stat().st_size < 10_000


def test_unreadable_images_have_keys_of_their_own():
    identity = Identity("ruler", "1", "exact")
    shown = [(Path("gone"), UNREADABLE)]
    keys = {Task.make(image, "image", "what?", identity, shown).key for image in "ab"}
    assert len(keys) == 2
    shown = [(Path("a"), "content"), (Path("gone"), UNREADABLE)]
    keys = {
        Task.make("a", "group", "what?", identity, shown, members).key
        for members in (("a", "b"), ("a", "c"))
    }
    assert len(keys) == 2


@pytest.mark.parametrize("damage", ["empty", "no link"])
def test_each_unreadable_image_has_its_own_failure(config, damage):
    for image in IDS[:2]:
        path = Path(config.dataset.root) / image
        path.unlink()
        path.write_bytes(b"") if damage == "empty" else os.symlink("nowhere", path)
    outcome = describe(config, ["image"], Ruler())["image"]
    for failed in (outcome.stats.failed, outcome.merged.failed):
        assert list(failed) == IDS[:2]
        for image, other in (IDS[:2], IDS[1::-1]):
            assert "cannot read the image: " in failed[image] and other not in failed[image]


@pytest.mark.parametrize("shard", ["0/1", "0/2"])
def test_control_characters_of_names_do_not_reach_the_terminal(config, tmp_path, capsys, shard):
    hostile = Path(config.dataset.root) / "00\x1b[2J\x07.png"
    (Path(config.dataset.root) / IDS[0]).rename(hostile)
    hostile.write_bytes(b"")
    write_config_file(config, tmp_path / "mine.py")
    arguments = [f"--config={tmp_path / 'mine.py'}", "--kind=image", f"--shard={shard}"]
    command.main(["describe", *arguments])
    shown = capsys.readouterr().out
    assert "\\x1b[2J\\x07.png: cannot read" in shown
    assert "\x1b" not in shown and "\x07" not in shown
