"""The captioning command: what is asked, what is kept, and that it continues after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning import describe as command
from captioning.describe import describe
from captioning.engines import ENGINES, Request, load_engine
from captioning.groups import sample_groups
from configs import common
from lattec_jax.config import resolve
from lattec_jax.data import pseudo_labels
from lattec_jax.data.descriptions import descriptions_path, read
from lattec_jax.errors import ConfigError, DataError

CLASSES = ("cat", "dog")
IDS = [f"{i:02d}.png" for i in range(10)]
LABELS = np.array([0, 1] * 5, np.int32)


class Engine:
    """Says how wide the pictures are; remembers what it was asked."""

    name = "ruler"
    batch_size = 4

    def __init__(self, model: str = "1") -> None:
        self.model = model
        self.batches: list[list[Request]] = []

    def describe(self, requests: Sequence[Request]) -> list[str]:
        self.batches.append(list(requests))
        return [f"width\n {' '.join(str(p.width) for p in r.pictures)}" for r in requests]

    @property
    def asked(self) -> list[str]:
        return [request.image_id for batch in self.batches for request in batch]


@pytest.fixture
def config(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for number, image in enumerate(IDS):
        Image.new("L" if number % 2 else "RGB", (number + 1, 3)).save(root / image)
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"weights")
    config = common.get_config()
    config.artifacts = str(tmp_path / "artifacts")
    config.weights = str(tmp_path / "weights")
    config.dataset.update(
        {"name": "mine", "root": str(root), "class_names": str(tmp_path / "names.txt")}
    )
    config.dataset.held_out = 0.0
    config.descriptions.engine = "ruler"
    config.descriptions.prompts.update({"image": "How wide?", "group": "How wide, all of you?"})
    return resolve(config)


def write_labels(config, labels=LABELS, ids=tuple(IDS)) -> None:
    source = pseudo_labels.provenance(
        pseudo_labels.weights_sha256(config.weights),
        [(name,) for name in CLASSES],
        config.templates,
    )
    path = pseudo_labels.pseudo_labels_path(config, source)
    scores = np.full(len(ids), 0.5)
    pseudo_labels.write(path, ids, labels, scores, scores, source)


def texts(config, kind: str) -> list[str | None]:
    return read([descriptions_path(config, kind)], [kind], IDS).texts[kind]


def test_images(config):
    engine = Engine()
    outcome = describe(config, ["image"], engine)["image"]
    assert [len(batch) for batch in engine.batches] == [4, 4, 2]
    assert engine.asked == IDS
    request = engine.batches[0][1]
    assert (request.kind, request.prompt) == ("image", "How wide?")
    assert request.pictures[0].mode == "L"
    assert (outcome.written, outcome.kept, outcome.unreadable) == (10, 0, ())
    assert outcome.path == Path(config.artifacts) / "mine/descriptions/ruler-image.jsonl"
    assert texts(config, "image") == [f"width {n + 1}" for n in range(10)]


def test_groups(config):
    write_labels(config)
    engine = Engine()
    describe(config, ["group"], engine)
    expected = sample_groups(IDS, LABELS, 4, seed=0)
    for batch in engine.batches:
        for request in batch:
            widths = [IDS.index(member) + 1 for member in expected[request.image_id]]
            assert [picture.width for picture in request.pictures] == widths
            assert request.prompt == "How wide, all of you?"
    path = descriptions_path(config, "group")
    assert '"members": ["00.png", ' in path.read_text(encoding="utf-8").splitlines()[0]


def test_all_kinds_by_default(config):
    write_labels(config)
    assert sorted(describe(config, None, Engine())) == ["group", "image"]


def test_nothing_is_described_when_pseudo_labels_are_missing(config):
    engine = Engine()
    with pytest.raises(DataError, match=r"lattec_jax\.pseudo_label"):
        describe(config, ["image", "group"], engine)
    assert not engine.batches


def test_what_is_there_is_kept(config):
    describe(config, ["image"], Engine())
    again = Engine()
    outcome = describe(config, ["image"], again)["image"]
    assert again.batches == [] and (outcome.written, outcome.kept) == (0, 10)
    other = Engine(model="2")
    assert describe(config, ["image"], other)["image"].written == 10
    assert descriptions_path(config, "image").read_text().count("\n") == 20
    config = config.copy_and_resolve_references().unlock()
    config.descriptions.prompts.image = "How wide is it?"
    assert describe(config, ["image"], other)["image"].written == 10


def test_only_groups_whose_members_changed_are_described_again(config):
    write_labels(config)
    describe(config, ["group"], Engine())
    changed = LABELS.copy()
    changed[0] = 1
    write_labels(config, changed)
    before = sample_groups(IDS, LABELS, 4, seed=0)
    after = sample_groups(IDS, changed, 4, seed=0)
    engine = Engine()
    describe(config, ["group"], engine)
    assert engine.asked == [image for image in IDS if before[image] != after[image]]
    assert engine.asked[0] == IDS[0]
    widths = " ".join(str(IDS.index(member) + 1) for member in after[IDS[0]])
    assert texts(config, "group")[0] == f"width {widths}"


def test_unreadable_pictures_are_skipped_and_reported(config):
    (Path(config.dataset.root) / IDS[3]).write_bytes(b"no picture")
    engine = Engine()
    outcome = describe(config, ["image"], engine)["image"]
    assert IDS[3] not in engine.asked and outcome.written == 9
    assert outcome.unreadable == (IDS[3],)
    # The stores leave it out, so it has no pseudo-label and is in no group.
    write_labels(config, np.delete(LABELS, 3), tuple(i for i in IDS if i != IDS[3]))
    groups = Engine()
    assert describe(config, ["group"], groups)["group"].unreadable == (IDS[3],)
    assert len(groups.asked) == 9
    # One became unreadable after the labels were made, and another picture was added.
    (Path(config.dataset.root) / IDS[4]).write_bytes(b"no picture")
    (Path(config.dataset.root) / "11.png").write_bytes(b"")
    config = config.copy_and_resolve_references().unlock()
    config.descriptions.prompts.group = "Once more?"
    outcome = describe(config, ["group"], Engine())["group"]
    members = sample_groups(IDS[:3] + IDS[4:], np.delete(LABELS, 3), 4, seed=0)
    shown_with_it = {image for image, group in members.items() if IDS[4] in group}
    assert set(outcome.unreadable) == {IDS[3], "11.png"} | shown_with_it
    assert outcome.written == 9 - len(shown_with_it)


def test_no_readable_picture(config):
    for image in IDS:
        (Path(config.dataset.root) / image).write_bytes(b"")
    with pytest.raises(DataError, match="none of the 10 pictures"):
        describe(config, ["image"], Engine())


def test_groups_need_pseudo_labels(config):
    with pytest.raises(DataError, match=r"python -m lattec_jax\.pseudo_label --config"):
        describe(config, ["group"], Engine())
    write_labels(config, LABELS[:2], ("old/1.png", "old/2.png"))
    with pytest.raises(DataError, match="no label for any of the 10 training images"):
        describe(config, ["group"], Engine())


def test_mistakes(config):
    with pytest.raises(ConfigError, match=r"group, image.*'grup'.*Did you mean 'group'"):
        describe(config, ["grup"], Engine())
    with pytest.raises(ConfigError, match=r"no engine 'ruler'; this version has .*pixels"):
        describe(config)
    config = config.copy_and_resolve_references().unlock()
    config.descriptions.engine = "pixel"
    with pytest.raises(ConfigError, match="Did you mean 'pixels'"):
        load_engine(config)
    config.descriptions.group_size = 1
    with pytest.raises(ConfigError, match="group_size: expected 2 or more, found 1"):
        describe(config, ["group"], Engine())


def test_every_engine_loads(config):
    config = config.copy_and_resolve_references().unlock()
    for name in ENGINES:
        config.descriptions.engine = name
        engine = load_engine(config)
        assert engine.name == name and engine.model and engine.batch_size > 0


def test_an_engine_that_loses_texts(config):
    engine = Engine()
    engine.describe = lambda requests: ["one"]
    with pytest.raises(RuntimeError, match="expected 4 texts, one per request, found 1"):
        describe(config, ["image"], engine)


def test_interrupt_keeps_whole_batches(config):
    class Stops(Engine):
        def describe(self, requests):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().describe(requests)

    with pytest.raises(KeyboardInterrupt):
        describe(config, ["image"], Stops())
    rest = Engine()
    outcome = describe(config, ["image"], rest)["image"]
    assert rest.asked == IDS[8:] and (outcome.written, outcome.kept) == (2, 8)
    assert texts(config, "image") == [f"width {n + 1}" for n in range(10)]


KILLED = """
import sys, time
from captioning.describe import describe
from lattec_jax.config import from_json
from pathlib import Path
from tests.captioning.test_describe import Engine
class Slow(Engine):
    batch_size = 2
    def describe(self, requests):
        if len(self.batches) == 3:
            print("three", flush=True)
            time.sleep(60)
        return super().describe(requests)
describe(from_json(Path(sys.argv[1])), ["image"], Slow())
"""


def test_continues_after_a_kill(config, tmp_path):
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "config.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert process.stdout.readline() == b"three\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    path = descriptions_path(config, "image")
    with open(path, "ab") as file:
        file.write(path.read_bytes()[:40])  # as if killed in the middle of a line
    rest = Engine()
    describe(config, ["image"], rest)
    assert rest.asked == IDS[6:]
    assert path.read_text().count("\n") == 10
    assert texts(config, "image") == [f"width {n + 1}" for n in range(10)]


def test_the_command(config, tmp_path, monkeypatch, capsys):
    (Path(config.dataset.root) / IDS[0]).write_bytes(b"")
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import common\n"
        "def get_config():\n"
        "    config = common.get_config()\n"
        f"    config.artifacts = {config.artifacts!r}\n"
        f"    config.dataset.update({config.dataset.to_dict()!r})\n"
        f"    config.descriptions.update({config.descriptions.to_dict()!r})\n"
        "    return config\n"
    )
    monkeypatch.setattr(command, "load_engine", lambda config: Engine())
    command.main(["describe", f"--config={file}", "--kind=image"])
    printed = capsys.readouterr().out
    assert "image: 9 written, 0 kept, 1 without" in printed
    assert f"unreadable: {IDS[0]}" in printed


def test_captioning_does_not_import_jax():
    program = (
        "import captioning.describe, lattec_jax.data.store, sys\n"
        "print({'jax', 'torch'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout.strip() == b"set()"
