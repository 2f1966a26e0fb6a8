"""Groups whose members are all drawn, as in the released code, and the files of both kinds."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np

from captioning.describe import describe
from captioning.groups import sample_groups
from lattec_jax.data.descriptions import descriptions_path
from lattec_jax.runtime.config import parse
from tests.captioning.ruler import IDS, LABELS, Ruler, texts, write_labels

MANY = [f"train/{i:04d}.png" for i in range(300)]
OF_MANY = np.random.default_rng(0).integers(0, 5, 300).astype(np.int32)


def test_all_members_are_drawn_from_the_class():
    label = dict(zip(MANY, OF_MANY.tolist(), strict=True))
    groups = sample_groups(MANY, OF_MANY, 4, seed=0, with_image=False)
    assert list(groups) == MANY
    for image, members in groups.items():
        assert len(set(members)) == 4
        assert {label[member] for member in members} == {label[image]}
    # Of some 60 images 4 are drawn: the image itself is one of them in about 20 of 300 groups.
    own = sum(image in members for image, members in groups.items())
    assert 5 <= own <= 40
    order = np.random.default_rng(5).permutation(len(MANY))
    again = sample_groups([MANY[i] for i in order], OF_MANY[order], 4, seed=0, with_image=False)
    assert again == groups
    assert sample_groups(MANY, OF_MANY, 4, seed=1, with_image=False) != groups


def test_every_member_of_a_class_is_drawn_equally_often_at_every_position():
    ids, labels = MANY[:10], [0] * 10
    positions = [Counter() for _ in range(3)]
    for seed in range(600):
        members = sample_groups(ids, labels, 3, seed, with_image=False)[ids[0]]
        for counter, member in zip(positions, members, strict=True):
            counter[member] += 1
    for counter in positions:
        assert set(counter) == set(ids)  # the image itself among them
        assert max(abs(count - 60) for count in counter.values()) < 37  # 5 deviations


def test_small_classes_are_drawn_with_replacement():
    ids, labels = list("abcdefg"), [0, 1, 1, 2, 2, 2, 2]
    groups = sample_groups(ids, labels, 4, seed=3, with_image=False)
    assert groups["a"] == ("a",) * 4
    assert len(groups["b"]) == 4 and set(groups["b"]) <= {"b", "c"}
    assert sorted(groups["d"]) == list("defg")  # a class of four needs no replacement


def test_the_presets_choose_the_members():
    for preset, members in (("paper", "with_image"), ("released_code", "drawn")):
        for name in ("folder", "eurosat"):  # without and with prompts by preset
            config, _ = parse(["describe", f"--config=configs/{name}.py:preset={preset}"])
            assert config.descriptions.group_members == members


def test_both_kinds_of_groups_have_their_own_file(config):
    write_labels(config)
    describe(config, ["group"], Ruler())
    with_image = descriptions_path(config, "group")
    before = with_image.read_bytes()
    config.descriptions.group_members = "drawn"
    engine = Ruler()
    describe(config, ["group"], engine)
    drawn = descriptions_path(config, "group")
    assert [p.name for p in (with_image, drawn)] == [
        "ruler-group-of-4.jsonl",
        "ruler-group-of-4-drawn.jsonl",
    ]
    assert engine.requested == IDS  # nothing of the other kind was taken over
    assert with_image.read_bytes() == before
    expected = sample_groups(IDS, LABELS, 4, seed=0, with_image=False)
    for line, request in zip(drawn.read_text().splitlines(), engine.requests, strict=True):
        record = json.loads(line)
        assert tuple(record["members"]) == expected[record["image"]]
        widths = [IDS.index(member) + 1 for member in expected[request.image_id]]
        assert [image.width for image in request.images] == widths
    # Training reads what its own configuration names.
    assert texts(config, "group") == [
        "width " + " ".join(str(IDS.index(m) + 1) for m in expected[image]) for image in IDS
    ]
    keys = [
        {json.loads(line)["key"] for line in path.read_text().splitlines()}
        for path in (with_image, drawn)
    ]
    assert not keys[0] & keys[1]
