"""`describe`: requests, reuse of descriptions, shards and failures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.describe import describe
from captioning.groups import sample_groups
from captioning.shards import Shard, shard_paths
from lattec_jax.data.descriptions import descriptions_path
from lattec_jax.runtime.errors import ConfigError, DataError, EngineError
from tests.captioning.ruler import (
    IDS,
    LABELS,
    WIDTHS,
    Ruler,
    make_config,
    texts,
    write_labels,
)


def test_images(config):
    engine = Ruler()
    outcome = describe(config, ["image"], engine)["image"]
    assert engine.requested == IDS
    request = engine.requests[1]
    assert (request.kind, request.prompt) == ("image", "How wide?")
    assert request.images[0].mode == "L"
    assert (outcome.stats.written, outcome.stats.reused, outcome.stats.failed) == (10, 0, {})
    assert outcome.merged.path == Path(config.artifacts) / "mine/descriptions/ruler-image.jsonl"
    assert texts(config, "image") == WIDTHS


def test_groups(config):
    write_labels(config)
    engine = Ruler()
    describe(config, ["group"], engine)
    expected = sample_groups(IDS, LABELS, 4, seed=0)
    for request in engine.requests:
        widths = [IDS.index(member) + 1 for member in expected[request.image_id]]
        assert [image.width for image in request.images] == widths
        assert request.prompt == "How wide, all of you?"
    path = descriptions_path(config, "group")
    assert path.name == "ruler-group-of-4.jsonl"
    assert '"members": ["00.png", ' in path.read_text(encoding="utf-8").splitlines()[0]


@pytest.mark.parametrize("size", [2, 8, 16])
def test_groups_of_other_sizes_have_their_own_file(config, size):
    write_labels(config)
    describe(config, ["group"], Ruler())
    config.descriptions.group_size = size
    engine = Ruler()
    describe(config, ["group"], engine)
    assert {len(request.images) for request in engine.requests} == {size}
    assert {p.name for p in descriptions_path(config, "group").parent.glob("*.jsonl")} == {
        "ruler-group-of-4.jsonl",
        f"ruler-group-of-{size}.jsonl",
    }


def test_forced_groups_are_marked(config, tmp_path):
    write_labels(config)
    config.descriptions.correct_per_group = 3
    with pytest.raises(DataError, match="analysis with the true labels"):
        describe(config, ["group"], Ruler())
    true = ["cat", "dog", "dog", "dog", "cat", "cat", "cat", "dog", "cat", "dog"]
    rows = "".join(f"{image},{name}\n" for image, name in zip(IDS, true, strict=True))
    (tmp_path / "labels.csv").write_text("image,label\n" + rows)
    config.dataset.labels = str(tmp_path / "labels.csv")
    outcome = describe(config, ["group"], Ruler())["group"]
    assert outcome.merged.path.name == "ruler-group-of-4-3-correct.jsonl"
    assert "analysis with true labels: 3 of 4 images correct" in outcome.merged.report()
    for line in outcome.merged.path.read_text().splitlines():
        record = json.loads(line)
        assert record["note"] == (
            "analysis with true labels: 3 of 4 images correct, counted against the image's "
            "pseudo-label"
        )
        assigned = ["cat", "dog"][LABELS[IDS.index(record["image"])]]
        assert sum(true[IDS.index(m)] == assigned for m in record["members"]) == 3
    config.descriptions.correct_label = "true"
    outcome = describe(config, ["group"], Ruler())["group"]
    assert outcome.merged.path.name == "ruler-group-of-4-3-correct-by-true-label.jsonl"
    for line in outcome.merged.path.read_text().splitlines():
        record = json.loads(line)
        assert record["note"].endswith("counted against the image's own true label")
        own = true[IDS.index(record["image"])]
        assert sum(true[IDS.index(m)] == own for m in record["members"]) == 3
    config.descriptions.correct_label = "pseudo"
    config.descriptions.correct_per_group = 5
    with pytest.raises(ConfigError, match="expected 0 to 4"):
        describe(config, ["group"], Ruler())


def test_prompts_may_name_the_pseudo_label(config):
    config.descriptions.prompts.image = "How wide is this {class}?"
    with pytest.raises(DataError, match=r"lattec_jax\.pseudo_label"):
        describe(config, ["image"], Ruler())
    write_labels(config)
    engine = Ruler()
    describe(config, ["image"], engine)
    assert [request.prompt for request in engine.requests[:2]] == [
        "How wide is this cat?",
        "How wide is this dog?",
    ]


def test_all_kinds_by_default_and_new_ones_by_their_prompt(config):
    write_labels(config)
    config.descriptions.prompts.scene = "Where?"
    assert sorted(describe(config, None, Ruler())) == ["group", "image", "scene"]


def test_nothing_is_described_when_pseudo_labels_are_missing(config):
    engine = Ruler()
    with pytest.raises(DataError, match=r"lattec_jax\.pseudo_label"):
        describe(config, ["image", "group"], engine)
    assert not engine.requests


def test_existing_descriptions_are_reused(config):
    describe(config, ["image"], Ruler())
    again = Ruler()
    outcome = describe(config, ["image"], again)["image"]
    assert again.requests == [] and (outcome.stats.written, outcome.stats.reused) == (0, 10)


def test_every_part_of_the_key_makes_new_descriptions_and_the_old_are_found_again(config):
    describe(config, ["image"], Ruler())
    assert describe(config, ["image"], Ruler(model="2"))["image"].stats.written == 10
    config.descriptions.prompts.image = "How wide is it?"
    assert describe(config, ["image"], Ruler(model="2"))["image"].stats.written == 10
    other = Ruler(model="2")
    other.identity = other.identity._replace(decoding="roughly")
    assert describe(config, ["image"], other)["image"].stats.written == 10
    image = Path(config.dataset.root) / IDS[3]
    Image.new("L", (30, 3)).save(image)
    assert describe(config, ["image"], other)["image"].stats.written == 1
    assert texts(config, "image")[3] == "width 30"
    config.descriptions.prompts.image = "How wide?"
    back = Ruler()
    describe(config, ["image"], back)
    assert back.requested == [IDS[3]]  # only its image is another
    assert len(descriptions_path(config, "image").read_text().splitlines()) == 10


def test_only_groups_whose_members_changed_are_described_again(config):
    write_labels(config)
    describe(config, ["group"], Ruler())
    changed = LABELS.copy()
    changed[0] = 1
    write_labels(config, changed)
    before = sample_groups(IDS, LABELS, 4, seed=0)
    after = sample_groups(IDS, changed, 4, seed=0)
    engine = Ruler()
    describe(config, ["group"], engine)
    assert engine.requested == [image for image in IDS if before[image] != after[image]]
    assert engine.requested[0] == IDS[0]
    widths = " ".join(str(IDS.index(member) + 1) for member in after[IDS[0]])
    assert texts(config, "group")[0] == f"width {widths}"


def test_shards_together_equal_one_run(config):
    write_labels(config)
    whole = describe(config, None, Ruler())
    expected = {kind: outcome.merged.path.read_bytes() for kind, outcome in whole.items()}
    for outcome in whole.values():
        for path in [outcome.merged.path, *shard_paths(outcome.merged.path)]:
            path.unlink()
    engines = [Ruler() for _ in range(3)]
    for number in (2, 0, 1):
        outcomes = describe(config, None, engines[number], Shard(number, 3))
        assert all(outcome.merged is None for outcome in outcomes.values())
    assert sum(len(engine.requested) for engine in engines) == 20
    merged = describe(config, None, Ruler())
    assert all(outcome.stats.written == 0 for outcome in merged.values())
    assert {k: outcome.merged.path.read_bytes() for k, outcome in merged.items()} == expected


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "0/0", "1/2/3", ""])
def test_shards_out_of_range(text):
    with pytest.raises(ConfigError, match=r"--shard: expected i/n"):
        Shard.parse(text)


def test_unreadable_images_are_recorded_and_tried_again(config):
    image = Path(config.dataset.root) / IDS[3]
    whole = image.read_bytes()
    image.write_bytes(b"no image")
    engine = Ruler()
    outcome = describe(config, ["image"], engine)["image"]
    assert IDS[3] not in engine.requested and outcome.stats.written == 9
    assert list(outcome.stats.failed) == list(outcome.merged.failed) == [IDS[3]]
    assert "not an image" in outcome.stats.failed[IDS[3]]
    assert texts(config, "image")[3] is None
    again = describe(config, ["image"], Ruler())["image"]
    assert (again.stats.written, again.stats.reused, list(again.stats.failed)) == (0, 9, [IDS[3]])
    image.write_bytes(whole)
    assert describe(config, ["image"], Ruler())["image"].stats.written == 1
    assert texts(config, "image") == WIDTHS


def test_a_group_with_an_unreadable_member(config):
    # The image caches left one out, so that it has no pseudo-label and is in no group; another
    # became unreadable after the labels were made, and a third was added.
    write_labels(config, np.delete(LABELS, 3), tuple(i for i in IDS if i != IDS[3]))
    (Path(config.dataset.root) / IDS[4]).write_bytes(b"no image")
    (Path(config.dataset.root) / "11.png").write_bytes(b"")
    outcome = describe(config, ["group"], Ruler())["group"]
    members = sample_groups(IDS[:3] + IDS[4:], np.delete(LABELS, 3), 4, seed=0)
    shown_with_it = {image for image, group in members.items() if IDS[4] in group}
    assert set(outcome.stats.failed) == shown_with_it
    assert set(outcome.merged.unlabeled) == {IDS[3], "11.png"}
    assert outcome.stats.written == 9 - len(shown_with_it)


def test_failures_of_the_engine_are_recorded_and_the_next_run_takes_only_them(config):
    outcome = describe(config, ["image"], Ruler(fails=IDS[2:4]))["image"]
    assert outcome.stats.failed == {IDS[2]: "no ruler", IDS[3]: "no ruler"}
    assert "failed: 02.png: no ruler" in outcome.merged.report()
    rest = Ruler()
    describe(config, ["image"], rest)
    assert rest.requested == IDS[2:4]
    assert texts(config, "image") == WIDTHS


def test_no_readable_image(config):
    for image in IDS:
        (Path(config.dataset.root) / image).write_bytes(b"")
    with pytest.raises(DataError, match="none of the 10 image descriptions"):
        describe(config, ["image"], Ruler())


def test_an_engine_that_never_works_is_stopped(tmp_path):
    config = make_config(tmp_path, 40)
    engine = Ruler(fails=[f"{n:02d}.png" for n in range(40)])
    with pytest.raises(EngineError, match=r"the first 20 descriptions all failed.*no ruler"):
        describe(config, ["image"], engine)
    assert len(engine.requested) == 20


def test_groups_need_pseudo_labels(config):
    with pytest.raises(DataError, match=r"python -m lattec_jax\.pseudo_label --config"):
        describe(config, ["group"], Ruler())
    write_labels(config, LABELS[:2], ("old/1.png", "old/2.png"))
    with pytest.raises(DataError, match="no label for any of the 10 training images"):
        describe(config, ["group"], Ruler())


def test_mistakes(config):
    with pytest.raises(ConfigError, match=r"group, image.*'grup'.*Did you mean 'group'"):
        describe(config, ["grup"], Ruler())
    config.descriptions.engine = "pixel"
    with pytest.raises(ConfigError, match="Did you mean 'pixels'"):
        describe(config)


def test_an_engine_that_loses_requests(config):
    engine = Ruler()
    whole = engine.describe
    engine.describe = lambda requests: (a for a in whole(requests) if a[0].image_id != IDS[4])
    with pytest.raises(
        RuntimeError, match=f"returned no result for 1 requests, the first for '{IDS[4]}'"
    ):
        describe(config, ["image"], engine)


def test_an_interrupt_keeps_every_answer(config):
    class Stops(Ruler):
        def describe(self, requests):
            for number, answer in enumerate(super().describe(requests)):
                if number == 7:
                    raise KeyboardInterrupt
                yield answer

    with pytest.raises(KeyboardInterrupt):
        describe(config, ["image"], Stops())
    rest = Ruler()
    outcome = describe(config, ["image"], rest)["image"]
    assert rest.requested == IDS[7:] and (outcome.stats.written, outcome.stats.reused) == (3, 7)
    assert texts(config, "image") == WIDTHS
