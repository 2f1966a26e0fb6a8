"""What `adapt` is given: images, class names and flags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lattec_jax import adaptation
from lattec_jax.adaptation import __main__ as command
from lattec_jax.adaptation import adapt
from lattec_jax.adaptation.images import (
    class_names_file,
    parts_in_use,
    read_class_names,
    read_images,
)
from lattec_jax.data import datasets
from lattec_jax.runtime.errors import ConfigError, DataError, UserError, WeightsError
from tests.test_adapt_choices import configured


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


def test_a_folder_is_used_where_it_is(photos, tmp_path, caplog):
    found = read_images("my photos/", Path("artifacts"))
    assert found.settings == {"name": "my-photos", "root": str(photos)} and not found.warnings
    (warning,) = caplog.messages
    assert warning.startswith("files of other formats are not used: 3 (2 .heic, 1 .mov), such as ")
    assert "such as classes.txt" not in warning
    read_images("my photos/", Path("artifacts"))  # the same warning is not repeated
    read_images(photos / "sub", Path("artifacts"))
    assert caplog.messages == [warning]
    assert not Path("artifacts").exists()


def test_the_parts_of_a_folder_that_are_used_are_named(photos):
    config = configured(f"--config.dataset.root={photos}")
    assert parts_in_use(config) == []
    for part in ("train", "test"):
        (photos / part).mkdir()
    assert parts_in_use(config) == [
        f"training images: only those in {photos}/train",
        f"test images: those in {photos}/test; their labels are used for measuring only",
    ]
    config.dataset.train = config.dataset.test = ""
    assert parts_in_use(config) == []


def test_test_images_are_left_out(photos):
    found = read_images("my photos/**/*.*", Path("artifacts"), photos / "sub")
    assert [Path(line).name for line in listed(found)] == ["a.jpg", "b.png"]
    assert f"2 images in {photos}/sub are test images, and not used for training" in found.warnings
    with pytest.raises(DataError, match=r"all 1 are in the folder of test images"):
        read_images([photos / "sub/d.bmp"], Path("artifacts"), photos / "sub")


def test_a_test_folder_may_be_inside_by_a_relative_path(photos, monkeypatch):
    for name in ("cat", "dog"):
        (photos / "labeled" / name).mkdir(parents=True)
        Image.new("RGB", (9, 8), (9, 9, len(name))).save(photos / "labeled" / name / "x.png")
    found = []
    monkeypatch.setattr(adaptation, "_train", lambda arguments, *rest: found.append(arguments))
    with pytest.raises(ConfigError, match="expected the work directory of a finished run"):
        adapt("my photos", ["cat", "dog"], test="my photos/labeled")
    dataset = datasets.read(adaptation._parse(found[0]))
    assert len(dataset.train.ids) == 4 and len(dataset.test.ids) == 2


def test_a_test_image_without_a_class_is_an_error_before_training(photos):
    for name in ("cat", "dgo"):
        (photos / "labeled" / name).mkdir(parents=True)
        Image.new("RGB", (9, 8), (9, 9, 9)).save(photos / "labeled" / name / "x.png")
    message = (
        r"test: expected every image below a folder named like a class, but 1 of 2 in \S+ photos/"
        r"labeled are not, the first: 'dgo/x\.png'\. The class names are cat, dog; "
    )
    with pytest.raises(DataError, match=message):
        adapt("my photos", ["cat", "dog"], test="my photos/labeled", weights="nowhere")
    with pytest.raises(DataError, match=r"test: no folder .*labelled .*Did you mean '.*/labeled'"):
        adapt("my photos", ["cat", "dog"], test=photos / "labelled", weights="nowhere")
    # Labels that another file gives are not looked for in the names of the folders.
    with pytest.raises(WeightsError, match="nowhere"):
        adapt(
            "my photos", ["cat", "dog"], test="my photos/labeled", weights="nowhere",
            settings={"dataset.labels": "none"},
        )  # fmt: skip


def test_files_that_cannot_be_written_are_named(photos):
    Path("artifacts").write_text("a file")
    with pytest.raises(DataError, match=r"cannot read or write artifacts/my-photos: "):
        adapt(photos, ["cat", "dog"])


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
        ("../nowhere/photo", r"images: no folder \.\./nowhere/photo \(looked in \S+\)\.$"),
        ("photo/../foto", r"Did you mean 'photo/\.\./photo'\?"),
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
    with pytest.raises(DataError, match=r"no file nams\.txt .*Did you mean 'names\.txt'"):
        read_class_names("nams.txt")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat"], "at least two class names in classes, found 1: cat"),
        ("cat", "at least two class names in classes, found 1: cat"),
        ([], "at least two class names in classes, found 0"),
        (["cat", "dog", "Cat"], "'cat' and 'Cat' are the same name"),
        (["cat", "dog", "cat"], "class names in classes: 'cat' is there twice; remove one"),
        ("one line.txt", "found 1: cat,dog. Name all classes .*, one per line"),
        (["cat", ""], "classes, line 2: expected a class name|at least two"),
        ("cat,,dog", "classes, line 2: expected a class name"),
        (["cat", "d\nog"], r"without control characters, found U\+000A"),
        ([0, 1], r"classes: expected names, found 0 \(int\)"),
        (2, "classes: expected class names such as .*found int"),
        ("missing.txt", r"classes: no file missing\.txt .*one class name per line"),
    ],
)
def test_what_are_no_class_names_is_refused(photos, classes, message):
    Path("one line.txt").write_text("cat,dog\n", encoding="utf-8")
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
        ({"descriptions": "lava"}, "descriptions: expected one of .*'llava'"),
        ({"descriptions": 3}, "descriptions: expected None, .*found int"),
        ({"test": "nowhere"}, "test: no folder nowhere"),
        ({"weights": "nowhere"}, r"config\.weights: expected a converted directory"),
    ],
)
def test_what_cannot_be_used_is_refused(photos, changes, message):
    with pytest.raises(UserError, match=message):
        adapt(photos, ["cat", "dog"], **changes)


def test_the_command_passes_its_flags_on(monkeypatch):
    calls = []

    def fake(*arguments, **named):
        calls.append((arguments, named))

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
