"""What `adapt` is given: images, class names, sources of descriptions; and what it chooses."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lattec_jax.adaptation import __main__ as command
from lattec_jax.adaptation import adapt, choices, describing
from lattec_jax.adaptation.images import class_names_file, read_class_names, read_images
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import ConfigError, DataError, EngineError, UserError
from tests.captioning.chat_server import MODEL, ChatServer


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with images of mixed formats, and other files."""
    (tmp_path / "my photos/sub").mkdir(parents=True)
    for n, name in enumerate(("a.jpg", "b.png", "sub/c.WEBP", "sub/d.bmp")):
        Image.new("RGB", (9, 8), (50 * n, 9, 9)).save(tmp_path / "my photos" / name)
    for name in ("x.heic", "y.heic", "clip.mov", "classes.txt", ".hidden.xyz"):
        (tmp_path / "my photos" / name).write_text("cat\ndog\n")
    return tmp_path / "my photos"


def listed(source) -> list[str]:
    return Path(source.settings["train"]).read_text(encoding="utf-8").splitlines()


def test_a_folder_is_used_where_it_is(photos, tmp_path):
    found = read_images("my photos/", Path("artifacts"))
    assert found.settings == {"name": "my-photos", "root": "my photos"}
    (warning,) = found.warnings
    assert warning.startswith("3 files of other formats are not used (2 .heic, 1 .mov); save")
    assert read_images(photos / "sub", Path("artifacts")).warnings == []
    assert not Path("artifacts").exists()


def test_a_pattern_and_a_list_of_paths_become_a_list_file(photos):
    pattern = read_images("my photos/**/*.*", Path("artifacts"))
    names = [Path(line).name for line in listed(pattern)]
    assert names == ["a.jpg", "b.png", "c.WEBP", "d.bmp"]
    assert pattern.settings["root"] == str(photos) and pattern.settings["test"] == ""
    paths = [photos / "b.png", str(photos / "a.jpg"), "my photos/b.png"]
    found = read_images(paths, Path("artifacts"))
    assert [Path(line).name for line in listed(found)] == ["a.jpg", "b.png"]
    assert found.warnings == ["repeated images: 1; each is used once"]
    again = read_images(iter(reversed(paths)), Path("artifacts"))
    assert again.settings == found.settings
    assert pattern.settings["name"] != found.settings["name"]  # so they have runs of their own


def test_images_in_memory_are_stored_once_without_loss(tmp_path):
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (7, 6, 3), dtype=np.uint8)
    gray = rng.integers(0, 256, (5, 9), dtype=np.uint8)
    palette = Image.fromarray(color).quantize(4)
    items = [color, gray, palette, Image.fromarray(255 - color).convert("CMYK"), color.copy()]
    found = read_images(items, tmp_path / "artifacts")
    assert found.warnings == ["repeated images: 1; each is used once"]
    folder = Path(found.settings["root"])
    stored = {path.name: np.asarray(Image.open(path).convert("RGB")) for path in folder.iterdir()}
    expected = [color, np.repeat(gray[..., None], 3, 2), np.asarray(palette.convert("RGB"))]
    assert len(stored) == 4
    for pixels in expected:
        assert any(np.array_equal(pixels, other) for other in stored.values())
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = read_images(items[::-1], tmp_path / "artifacts")
    assert again.settings == found.settings
    assert times == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert read_images(items[:2], tmp_path / "artifacts").settings != found.settings
    Image.fromarray(color).save(tmp_path / "file.png")
    mixed = read_images([gray, tmp_path / "file.png"], tmp_path / "artifacts")
    assert len(listed(mixed)) == 2 and str(tmp_path / "file.png") in listed(mixed)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("foto", r"images: no folder foto .*Did you mean 'photo'"),
        ("photo/a.png", "is one file; expected a folder"),
        ("empty", "no images below empty"),
        ("photo/*.gif", r"no images that 'photo/\*\.gif' matches"),
        ([], "expected several images, found none"),
        (iter(()), "expected several images, found none"),
        (None, "images: expected a folder, .*found NoneType"),
        (7, "images: expected a folder, .*found int"),
        (b"photo", "images: expected a folder, .*found bytes"),
        (Image.new("RGB", (4, 4)), "images: expected a folder, .*found Image"),
        ([1, 2], "image 0: expected a path, a PIL image or a NumPy array, found int"),
        (["photo/a.png", "photo/b.png"], r"1 of 2 paths are no files, the first: 'photo/b\.png'"),
        (["photo"], "1 of 1 paths are no files, .*a folder is passed by itself"),
        (np.zeros((3, 4, 4, 3)), r"image 0: expected an array .* of float64"),
        ([np.zeros((4, 4), np.uint8), np.zeros((0, 4), np.uint8)], r"image 1: expected an array"),
        ([Image.new("RGB", (0, 4))], "image 0: ValueError: a side of length 0"),
        (["photo/new\nline.png"], "expected a file name without line breaks"),
        ("photo", "expected at least two images"),
    ],
)
def test_what_are_no_images_is_refused(tmp_path, images, message):
    (tmp_path / "photo").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("a.png", "new\nline.png") if isinstance(images, list) else ("a.png",):
        Image.new("RGB", (4, 4)).save(tmp_path / "photo" / name)
    with pytest.raises(DataError, match=message):
        adapt(images, ["cat", "dog"], weights="nowhere")


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["cat", "dog | puppy"], ["cat", "dog | puppy"]),
        ("cat, dog", ["cat", "dog"]),
        ("names.txt", ["black cat", "dog"]),
        (Path("names.txt"), ["black cat", "dog"]),
        ({"dog", "cat"}, ["cat", "dog"]),
        (np.array(["cat", "dog"]), ["cat", "dog"]),
    ],
)
def test_class_names(classes, names):
    Path("names.txt").write_text("black cat\ndog\n\n", encoding="utf-8")
    assert read_class_names(classes) == names
    file = class_names_file(names, Path("artifacts"))
    assert file.read_text(encoding="utf-8").splitlines() == names
    assert class_names_file(names[::-1], Path("artifacts")) != file


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat"], "at least two class names in classes, found 1: cat"),
        ("cat", "at least two class names in classes, found 1: cat"),
        ([], "at least two class names in classes, found 0"),
        (["cat", "dog", "Cat"], "'cat' and 'Cat' are the same name"),
        (["cat", ""], "classes, line 2: expected a class name|at least two"),
        ("cat,,dog", "classes, line 2: expected a class name"),
        (["cat", "d\nog"], r"without control characters, found U\+000A"),
        ([0, 1], r"classes: expected names, found 0 \(int\)"),
        (2, "classes: expected class names such as .*found int"),
        ("missing.txt", r"cannot read missing\.txt: No such file"),
    ],
)
def test_what_are_no_class_names_is_refused(photos, classes, message):
    with pytest.raises(UserError, match=message):
        adapt(photos, classes, weights="nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"trian.max_steps": 3}}, "unknown configuration key .*'train.max_steps'"),
        ({"settings": {"train.max_steps": 2.5}}, r"config\.train\.max_steps=2\.5"),
        ({"settings": {"train.max_steps": None}}, r"config\.train\.max_steps.*found None"),
        ({"settings": {"method.alpha": 2}}, r"config\.method\.alpha: expected a number from 0"),
        ({"settings": {"method.name": "flyp"}}, "pass it as method="),
        ({"settings": ["train.max_steps=3"]}, "settings: expected values by dotted keys"),
        ({"preset": "relased"}, r"config\.preset: expected one of .*'released_code'"),
        ({"method": "latclip"}, r"config\.method\.name: expected one of .*'latteclip'"),
        ({"seed": -1}, r"config\.seed: expected a whole number"),
        ({"seed": "one"}, r"seed: expected int, found 'one'"),
        ({"weights": None}, r"weights: expected str or PathLike, found None"),
        ({"descriptions": "lava"}, "descriptions: expected None, .*'llava'"),
        ({"descriptions": 3}, "descriptions: expected None, .*found int"),
        ({"test": "nowhere"}, "test: no folder nowhere"),
        ({"weights": "nowhere"}, r"config\.weights: expected a converted directory"),
    ],
)
def test_what_cannot_be_used_is_refused(photos, changes, message):
    with pytest.raises(UserError, match=message):
        adapt(photos, ["cat", "dog"], **changes)


# ---------------------------------------------------------------------------------- what is chosen


def pretrained(vision: VisionConfig | None = None, text: TextConfig | None = None) -> Any:
    """The parts of a checkpoint that matter for the memory."""
    vision = vision or VisionConfig(32, 2, 2, 8, (16, 16))
    text = text or TextConfig(24, 2, 2, 24, 30)
    params = {"w": np.zeros(20_000, np.float32)}
    return SimpleNamespace(config=CLIPConfig(16, vision=vision, text=text), params=params)


def configured(*overrides: str, options: str = ""):
    file = f"configs/folder.py:{options}" if options else "configs/folder.py"
    return parse(["adapt", f"--config={file}", *overrides])[0]


@pytest.mark.parametrize(
    ("images", "batch", "steps", "alpha", "warmup"),
    [
        (18_900, 512, 1800, 0.99, 40),  # EuroSAT: the paper's values
        (3_680, 512, 350, 0.99, 35),  # Oxford Pets
        (1_000, 128, 350, 0.99, 35),  # the demo's images and batch
        (300, 32, 450, 0.99, 40),
        (100, 32, 150, 0.89, 15),
        (20, 20, 50, 0.7, 5),
        (100_000, 512, 2000, 0.99, 40),
    ],
)
def test_the_rules(images, batch, steps, alpha, warmup):
    found = choices.choose(configured(), (), images, pretrained())
    assert found.settings["train.batch_size"] == batch
    assert f"steps = {steps:,}: min(2,000 steps, 50 epochs)" in "\n".join(found.lines)
    assert found.settings["method.alpha"] == found.settings["method.momentum"] == alpha
    assert found.settings["train.warmup_steps"] == warmup
    assert found.settings["train.microbatch_size"] == 0
    assert found.lines[0] == "1 x cpu"
    assert parse(["x", "--config=configs/folder.py", *(
        f"--config.{key}={value}" for key, value in found.settings.items()
    )])  # fmt: skip


def test_the_demos_rule():
    config = configured("--config.train.max_steps=60")
    found = choices.choose(config, ("train.max_steps",), 1000, pretrained())
    assert found.settings["method.alpha"] == 0.74  # as in configs/demo.py
    given = ("train.max_steps", "method.alpha", "train.batch_size")
    config = configured("--config.train.max_steps=60", "--config.train.batch_size=64")
    found = choices.choose(config, given, 1000, pretrained())
    assert "method.alpha" not in found.settings and "train.batch_size" not in found.settings
    assert "train.batch_size = 64: as given" in found.lines
    assert "method.alpha = 0.99: as given" in found.lines


def test_other_methods_and_presets_keep_their_values():
    reclip = choices.choose(configured(options="method=reclip"), (), 1000, pretrained())
    assert reclip.settings.keys() == {"train.microbatch_size"}
    assert "train.batch_size = 64: the method's" in reclip.lines
    released = configured("--config.train.epochs=2", options="preset=released_code")
    found = choices.choose(released, (), 1000, pretrained())
    assert not {"method.alpha", "method.momentum"} & found.settings.keys()
    zero_shot = choices.choose(configured(options="method=zero_shot"), (), 100, pretrained())
    assert not zero_shot.settings and not zero_shot.lines


@pytest.mark.parametrize(("capacity", "size"), [(2**40, 0), (60e6, 64), (9e6, 8), (1, 1)])
def test_a_batch_is_encoded_in_parts_where_memory_is_small(monkeypatch, capacity, size):
    monkeypatch.setattr(choices, "_memory", lambda devices: (capacity, "of the device"))
    found = choices.choose(configured(), (), 10_000, pretrained())
    assert found.settings["train.microbatch_size"] == size
    assert ("so it is encoded in parts" in "".join(found.lines)) == bool(size)


def test_the_memory_estimate_is_that_of_the_measured_step():
    """ViT-B-32, 512 images: 42.44 GiB of temporary buffers (benchmarks/README.md)."""
    vision, text = VisionConfig(768, 12, 12, 32, (224, 224)), TextConfig(512, 12, 8, 77, 49408)
    checkpoint = pretrained(vision, text)
    checkpoint.params["w"] = np.zeros(60_000_000, np.int8)
    line = choices.choose(configured(), (), 1000, checkpoint).lines[0]
    assert line.startswith("1 x cpu: no GPU or TPU was found") and "60 million" in line
    found = 512 * choices._bytes_per_image(checkpoint, "float32") / 2**30
    assert found == pytest.approx(42.44, rel=0.05)


# ------------------------------------------------------------------ servers, and the command itself


@pytest.fixture
def server() -> Iterator[ChatServer]:
    server = ChatServer()
    yield server
    server.stop()


def test_the_only_model_of_a_server_is_taken(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert describing.served_model(server.url, "OPENAI_API_KEY") == MODEL

    def models(handler) -> None:
        names = [{"id": "one"}, {"id": f"two {handler.headers['Authorization']}"}]
        handler.send(200, json.dumps({"data": names}))

    server.models = models
    with pytest.raises(ConfigError, match=r"has 2 models \(one, two Bearer \*\*\*\); name the"):
        describing.served_model(server.url, "OPENAI_API_KEY")
    for status, body in ((404, "{}"), (200, "[1]"), (200, "<html>"), (302, "")):
        server.models = lambda h, s=status, b=body: h.send(s, b, Location=server.url)
        with pytest.raises(EngineError, match="does not list its models"):
            describing.served_model(server.url, "OPENAI_API_KEY")


def test_an_address_stands_for_its_server():
    found = describing.make_describer("http://localhost:8000", "bird")
    assert found.settings["descriptions.openai.base_url"] == "http://localhost:8000/v1"
    assert found.engine == "openai"
    assert found.settings["descriptions.prompts.image"] == (
        "Describe the bird in the photo concisely, using less than 20 words."
    )
    other = describing.make_describer("https://host/api/v2/", "")
    assert other.settings["descriptions.openai.base_url"] == "https://host/api/v2"
    assert describing.make_describer(lambda images: [], "").engine == "function-lambda"


def test_the_command_passes_its_flags_on(monkeypatch, capsys):
    calls = []

    class Found:
        directory = Path("runs/my pets")

    def fake(*arguments, **named):
        calls.append((arguments, named))
        return Found()

    monkeypatch.setattr(command, "adapt", fake)
    command.main(["adapt", "photos", "--classes=cat,dog", "--config.train.max_steps=3",
                  "--describe=http://h/v1", "--describe_model=m", "--domain=pet"])  # fmt: skip
    ((arguments, named),) = calls
    assert arguments == ("photos", "cat,dog")
    assert named["settings"] == {"train.max_steps": "3", "descriptions.openai.model": "m"}
    assert (named["descriptions"], named["domain"]) == ("http://h/v1", "pet")
    assert (named["test"], named["workdir"], named["weights"]) == (
        None,
        None,
        "ViT-B-32:laion2b_s34b_b79k",
    )
    shown = capsys.readouterr().out
    assert f"open the report: file://{os.getcwd()}/runs/my%20pets/report.html" in shown
    assert "python -m lattec_jax.predict --workdir='runs/my pets' IMAGE_OR_FOLDER" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["photos"], "--classes is missing; for example --classes=cat,dog"),
        (["--classes=a,b"], "expected one folder of images, found 0 arguments"),
        (["a.jpg", "b.jpg", "--classes=a,b"], r"found 2 arguments: a\.jpg b\.jpg; quote a pattern"),
        (["photos", "--classes=a,b", "--config=x.py"], "makes its configuration itself"),
        (["photos", "--classes=a,b", "--config.seed"], r"expected --config\.seed=VALUE"),
        (["photos", "--classes=a,b", "--steps=3"], "Unknown command line flag 'steps'"),
    ],
)
def test_mistakes_on_the_command_line(flags, message):
    with pytest.raises(ConfigError, match=message):
        command.main(["adapt", *flags])
