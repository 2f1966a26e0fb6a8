"""The page: complete, and safe whatever the descriptions contain."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning import browse
from captioning.collage import collage
from captioning.describe import describe
from captioning.engines import engine_module
from captioning.groups import sample_groups
from captioning.shards import Shard
from lattec_jax.data.descriptions import Record, descriptions_path, to_line
from lattec_jax.data.images.preprocess import open_image
from lattec_jax.runtime.config import to_json
from lattec_jax.runtime.errors import ConfigError, DataError
from tests.captioning.hostile_page import hostile_data
from tests.captioning.ruler import IDS, LABELS, Ruler, write_config_file, write_labels

HOSTILE = "</script><script>alert(1)</script> \u2028 \"quoted\" & 'so' on"


def data_of(page: str) -> dict:
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page)
    return json.loads(found)


def decoded(uri: str, kind: str) -> Image.Image:
    prefix = f"data:image/{kind};base64,"
    assert uri.startswith(prefix)
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix))))


def test_everything_that_is_known_is_on_the_page(config):
    write_labels(config)
    describe(config, None, Ruler(fails=[IDS[2]]))
    page, shown = browse.page(config, 0)
    assert shown == "10 images" and "http" not in page.replace("http-equiv", "")
    data = data_of(page)
    assert data["classes"] == ["cat", "dog"]
    assert [image["id"] for image in data["images"]] == IDS
    second, third = data["images"][1:3]
    assert (second["label"], second["score"], second["truth"]) == ("dog", 0.5, None)
    assert {"kind": "image", "text": "width 2", "error": ""} in second["texts"]
    assert {"kind": "image", "text": "", "error": "no ruler"} in third["texts"]
    members = sample_groups(IDS, LABELS, 4, seed=0)[IDS[1]]
    assert second["members"] == list(members)
    root = Path(config.dataset.root)
    expected = collage([open_image(root / member) for member in members])
    expected.thumbnail((240, 240), Image.Resampling.LANCZOS)
    found = decoded(second["collage"], "jpeg")
    assert found.size == expected.size
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 4
    assert decoded(second["thumbnail"], "png").size == (2, 3)


def test_what_was_described_stays_data(config):
    class Hostile(Ruler):
        def describe(self, requests):
            for request, _ in super().describe(requests):
                yield request, HOSTILE

    describe(config, ["image"], Hostile())
    page, shown = browse.page(config, 3)
    assert shown == "3 of 10 images (--limit=0 shows all)"
    data = data_of(page)
    assert len(data["images"]) == 3
    assert data["images"][0]["texts"][0]["text"] == " ".join(HOSTILE.split())
    assert "alert(1)</script>" not in page and "innerHTML" not in page


def test_unmerged_shards_and_unreadable_images(config):
    describe(config, ["image"], Ruler(), Shard(0, 2))
    (Path(config.dataset.root) / IDS[0]).write_bytes(b"")
    images = data_of(browse.page(config, 0)[0])["images"]
    assert images[0]["thumbnail"] is None and not images[0]["texts"]  # it was of another image
    assert images[2]["texts"] == [{"kind": "image", "text": "width 3", "error": ""}]
    assert images[1]["thumbnail"] and not images[1]["texts"] and images[1]["label"] is None


def test_only_answers_to_the_present_prompt_are_shown(config):
    class Echo(Ruler):
        def describe(self, requests):
            for request, _ in super().describe(requests):
                yield request, f"answer to {request.prompt}"

    for prompt in ("A", "B"):  # A merged, B in the parts of workers only
        config.descriptions.prompts.image = prompt
        for shard in [Shard(0, 1)] if prompt == "A" else [Shard(0, 2), Shard(1, 2)]:
            describe(config, ["image"], Echo(), shard)
    for prompt in ("A", "B", "A"):
        config.descriptions.prompts.image = prompt
        images = data_of(browse.page(config, 0)[0])["images"]
        assert {t["text"] for i in images for t in i["texts"]} == {f"answer to {prompt}"}


def test_files_of_another_captioner_and_missing_weights(config):
    config.descriptions.engine = "mine"
    config.weights = str(Path(config.weights) / "none")
    path = descriptions_path(config, "image")
    path.parent.mkdir(parents=True)
    path.write_bytes(to_line(Record(IDS[0], "image", "by hand")))
    images = data_of(browse.page(config, 0)[0])["images"]
    assert images[0]["texts"][0]["text"] == "by hand" and images[0]["label"] is None


def write_run(config, workdir: Path) -> None:
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(to_json(config))


class Page(HTMLParser):
    """Parse the elements of a page and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.elements.append((f"/{tag}", {}))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data

    def handle_comment(self, data):
        raise AssertionError(data)

    @property
    def policy(self) -> dict[str, str]:
        (content,) = (
            values["content"]
            for tag, values in self.elements
            if values.get("http-equiv") == "Content-Security-Policy"
        )
        return dict(rule.strip().split(" ", 1) for rule in content.split(";"))


def test_a_page_full_of_markup_is_data():
    data = hostile_data()
    page, empty = (
        Page(browse.render(d)) for d in (data, {"name": "", "classes": [], "images": []})
    )
    assert page.elements == empty.elements
    stored, program = page.scripts
    assert json.loads(stored) == data
    assert program == empty.scripts[1]
    assert not {"<", ">", "&", "\0", "\u2028", "\ud83d"} & set(stored)


def test_only_the_script_of_the_page_may_run():
    page = Page(browse.render(hostile_data()))
    policy = page.policy
    assert policy.pop("script-src") == (
        f"'sha256-{base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()}'"
    )
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    first = [tag for tag, _ in page.elements]
    assert first.index("meta") < first.index("style") < first.index("script")
    assert not any(name.startswith("on") for _, values in page.elements for name in values)


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        browse.render({"name": float("nan")})


@pytest.mark.parametrize(
    ("size", "kind", "shown"),
    [((1, 1), "png", (1, 1)), ((96, 40), "png", (96, 40)), ((97, 40), "jpeg", (97, 40)),
     ((480, 960), "jpeg", (120, 240))],
)  # fmt: skip
def test_few_pixels_are_stored_without_loss(config, size, kind, shown):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(Path(config.dataset.root) / IDS[0])
    describe(config, ["image"], Ruler())
    found = decoded(data_of(browse.page(config, 1)[0])["images"][0]["thumbnail"], kind)
    assert found.size == shown
    if kind == "png":
        assert np.array_equal(np.asarray(found), pixels)


def test_an_image_that_cannot_be_converted_has_no_image(config, monkeypatch):
    describe(config, ["image"], Ruler())

    def refuse(images):
        raise ValueError("conversion not supported")

    monkeypatch.setattr(browse, "single_image", refuse)
    assert data_of(browse.page(config, 1)[0])["images"][0]["thumbnail"] is None


def test_the_filter(config, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    (function,) = re.findall(r"function matches.*?\n}\n", browse.TEMPLATE.read_text(), re.S)
    image = {"id": "a/Été.jpg", "label": "cat", "texts": [{"text": "Two red cars", "error": ""}]}
    cases = [("", "", True), ("cat", "cars RED", True), ("dog", "", False), ("", "blue", False)]
    calls = [f"matches({json.dumps(image)}, {json.dumps(c)}, {json.dumps(w)})" for c, w, _ in cases]
    script = f"{function}\nconsole.log(JSON.stringify([{', '.join(calls)}]))"
    result = subprocess.run(["node", "-e", script], capture_output=True, check=True)
    assert json.loads(result.stdout) == [expected for _, _, expected in cases]


def test_mistakes(config):
    with pytest.raises(
        DataError, match=r"no descriptions of mine .*python -m captioning\.describe"
    ):
        browse.page(config, 0)
    with pytest.raises(ConfigError, match="--limit: expected 0 or more"):
        browse.page(config, -1)


def test_the_command(config, tmp_path, capsys):
    describe(config, ["image"], Ruler())
    write_config_file(config, tmp_path / "mine.py")
    beside = browse.page_path(config)
    assert beside.parent == descriptions_path(config, "image").parent
    for out in (beside, tmp_path / "new" / "page.html"):
        flags = [] if out == beside else [f"--out={out}"]
        browse.main(["browse", f"--config={tmp_path / 'mine.py'}", "--limit=4", *flags])
        first, last = capsys.readouterr().out.splitlines()
        assert first.startswith("4 of 10 images") and last == str(out)
        assert len(data_of(out.read_text(encoding="utf-8"))["images"]) == 4


def test_each_model_has_a_page_of_its_own(config, tmp_path, capsys):
    describe(config, ["image"], Ruler())
    config.descriptions.engine = "openai"
    shown = {}
    for model in ("org/small v1", "org/small v2"):
        config.descriptions.openai.model = model

        class Says(Ruler):
            identity = engine_module(config).identity(config)

            def __init__(self, model=model):
                self.requests, self.fails, self.says = [], set(), model

            def describe(self, requests):
                for request, _ in super().describe(requests):
                    yield request, self.says

        describe(config, ["image"], Says())
        write_run(config, tmp_path / model)
    for model in ("org/small v1", "org/small v2"):
        browse.main(["browse", f"--workdir={tmp_path / model}"])
        shown[model] = Path(capsys.readouterr().out.splitlines()[-1])
    assert len(set(shown.values())) == 2
    for model, path in shown.items():
        assert path.name.startswith(f"openai-{model.replace('/', '-').replace(' ', '-')}-")
        images = data_of(path.read_text(encoding="utf-8"))["images"]
        assert {t["text"] for i in images for t in i["texts"]} == {model}


def test_the_path_of_the_page_depends_on_what_it_shows(config):
    paths = [browse.page_path(config)]
    assert re.fullmatch(r"ruler-1-[0-9a-f]{8}\.html", paths[0].name)
    for key, value in (
        ("descriptions.prompts.image", "How high?"),
        ("descriptions.prompts.scene", "Where?"),
        ("descriptions.group_size", 2),
        ("descriptions.seed", 1),
        ("dataset.class_names", "others.txt"),
        ("weights", "others"),
        ("templates", ("a drawing of a {}.",)),
        ("descriptions.openai.concurrency", 1),
    ):
        config.update_from_flattened_dict({key: value})
        paths.append(browse.page_path(config))
    assert paths[-1] == paths[-2]  # the last changes nothing on the page
    assert len(set(paths)) == len(paths) - 1


@pytest.mark.parametrize(
    ("texts", "results", "used"),
    [
        (("class",), None, False),
        (("class", "image"), '{"descriptions": null}', False),
        (("class", "image"), '{"descriptions": {"image": {"missing": 0}}}', True),
        (("class", "image"), "{}", True),
        (("class", "image"), None, True),
    ],
)
def test_a_run_without_descriptions(config, tmp_path, texts, results, used):
    describe(config, ["image"], Ruler())  # of another run on the same images
    config.method.texts = texts
    write_run(config, tmp_path / "run")
    if results:
        (tmp_path / "run/results.json").write_text(results)
    if used:
        browse.main(["browse", f"--workdir={tmp_path / 'run'}"])
        return
    with pytest.raises(DataError, match="was trained on the class names alone") as refused:
        browse.main(["browse", f"--workdir={tmp_path / 'run'}"])
    message = str(refused.value)
    assert "--describe=" in message and "new work directory" in message
    assert "ruler" not in message and "--config" not in message


def test_a_run_of_a_python_function_is_shown_by_its_work_directory(config, tmp_path, capsys):
    config.descriptions.engine = "function-says"
    for kind, path in ((k, descriptions_path(config, k)) for k in ("image", "group")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            to_line(Record(image=IDS[0], kind=kind, text=f"{kind}: a cat", key="0" * 64))
        )
    write_run(config, tmp_path / "run")
    browse.main(["browse", f"--workdir={tmp_path / 'run'}"])
    page = Path(capsys.readouterr().out.splitlines()[-1])
    assert re.fullmatch(r"function-says-[0-9a-f]{8}\.html", page.name)
    assert "image: a cat" in page.read_text()
    with pytest.raises(ConfigError, match="nothere"):
        browse.main(["browse", f"--workdir={tmp_path / 'nothere'}"])
