"""Merging: complete or refused, never mixed, nothing lost, and a report for a person."""

from __future__ import annotations

import shutil

import pytest

from captioning import merge as command
from captioning.describe import describe
from captioning.merge import merge
from captioning.shards import Shard
from lattec_jax.data.descriptions import Record, descriptions_path, records, to_line
from lattec_jax.runtime.errors import ConfigError, DataError
from tests.captioning.ruler import IDS, Ruler, texts, write_config_file, write_labels


def test_incomplete_sets_are_refused_with_what_is_missing(config):
    describe(config, ["image"], Ruler(), Shard(0, 2))
    with pytest.raises(DataError, match=r"5 of 10 image descriptions are missing.*'01.png'"):
        merge(config, ["image"])
    assert not descriptions_path(config, "image").exists()
    describe(config, ["image"], Ruler(model="2"), Shard(1, 2))
    with pytest.raises(DataError, match=r"5 of 10 .*ruler \| 1 \| exact.*5 are from ruler \| 2"):
        merge(config, ["image"])
    describe(config, ["image"], Ruler(), Shard(1, 2))
    merged = merge(config, ["image"])["image"]
    assert merged.path == descriptions_path(config, "image")
    assert [record.image for record in records(merged.path)] == IDS
    assert {record.model for record in records(merged.path)} == {"1"}


def test_the_report(config):
    class Terse(Ruler):
        def describe(self, requests):
            for request, _ in super().describe(requests):
                yield request, "" if request.image_id == IDS[0] else "the same"

    describe(config, ["image"], Terse(), Shard(0, 2))
    describe(config, ["image"], Ruler(fails=IDS[8:]), Shard(1, 2))
    report = merge(config, ["image"])["image"].report()
    assert "8 descriptions ->" in report
    assert "empty: 1; failed: 1; without a pseudo-label (unreadable): 0" in report
    assert "words: 2 to 2, median 2" in report
    assert "different texts: 5; 4 times: 'the same'" in report
    assert "failed: 09.png: no ruler" in report


def test_a_file_of_another_captioner_is_not_overwritten(config):
    path = descriptions_path(config, "image")
    path.parent.mkdir(parents=True)
    path.write_bytes(to_line(Record(IDS[0], "image", "by hand")))
    engine = Ruler()
    with pytest.raises(DataError, match=r"without keys.*move the file away"):
        describe(config, ["image"], engine)
    assert not engine.requests
    assert path.read_bytes() == to_line(Record(IDS[0], "image", "by hand"))


def test_a_merged_file_without_its_shards_is_not_lost(config):
    describe(config, ["image"], Ruler())
    path = descriptions_path(config, "image")
    before = path.read_bytes()
    shutil.rmtree(path.parent / "shards")
    again = Ruler()
    describe(config, ["image"], again)
    assert not again.requests
    config.descriptions.prompts.image = "And now?"
    describe(config, ["image"], Ruler())
    assert path.read_bytes() != before
    config.descriptions.prompts.image = "How wide?"
    back = Ruler()
    describe(config, ["image"], back)
    assert not back.requests
    assert path.read_bytes() == before


def test_mistakes(config):
    with pytest.raises(ConfigError, match="Did you mean 'image'"):
        merge(config, ["imag"])
    with pytest.raises(DataError, match="10 of 10 image descriptions are missing"):
        merge(config, ["image"])
    with pytest.raises(DataError, match=r"lattec_jax\.pseudo_label"):
        merge(config, ["group"])


def test_the_command(config, tmp_path, capsys):
    write_labels(config)
    for number in range(3):
        describe(config, None, Ruler(), Shard(number, 3))
    write_config_file(config, tmp_path / "mine.py")
    command.main(["merge", f"--config={tmp_path / 'mine.py'}", "--kind=group,image"])
    printed = capsys.readouterr().out
    assert "group: 10 descriptions ->" in printed and "image: 10 descriptions ->" in printed
    assert texts(config, "image")[9] == "width 10"
