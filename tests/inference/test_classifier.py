"""`Classifier` and the command that is built on it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from lattec_jax import Classifier, predict
from lattec_jax.data.images.preprocess import UnreadableImage
from lattec_jax.inference import prediction_files
from lattec_jax.inference.classifier import BATCH_SIZE
from lattec_jax.models import run_artifacts
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.clip import bind, define
from lattec_jax.models.run_artifacts import ZeroShotHeads
from lattec_jax.runtime.errors import ConfigError, DataError, WeightsError
from tests.dummy import dummy_checkpoint
from tests.no_room import no_room

CLASSES = ("cat", "dog", "bird", 'a "red" one, green')


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """What `predict` needs of a work directory, and images of all kinds beside it."""
    directory = tmp_path_factory.mktemp("finished")
    checkpoint = dummy_checkpoint()
    checkpoint.source["class_names"] = list(CLASSES)
    checkpoint.save(directory / "run/model")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    safetensors.numpy.save_file({"classifier": vectors}, directory / "run/classifier.safetensors")
    (directory / "images").mkdir()
    for n in range(21):
        height, width = rng.integers(10, 40, 2)
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(directory / f"images/{n:02}.png")
    return directory


def paths_of(finished: Path) -> list[Path]:
    return sorted((finished / "images").glob("*.png"))


def expected(finished: Path, paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Features and probabilities, one image after the other, without batches or threads."""
    checkpoint, vectors = run_artifacts.load(finished / "run")
    model = jax.jit(
        lambda pixels: bind(define(checkpoint.config), checkpoint.params).encode_image(pixels)
    )
    features = []
    for path in paths:
        pixels = checkpoint.preprocess.pixels(Image.open(path)).astype(np.float32) / 255
        pixels = (pixels - np.float32(checkpoint.preprocess.mean)) / np.float32(
            checkpoint.preprocess.std
        )
        with jax.default_matmul_precision("highest"):
            features.append(np.asarray(model(pixels[None]))[0])
    features = np.stack(features)
    odds = np.exp(
        np.exp(np.float64(checkpoint.params["logit_scale"])) * (features @ vectors.adapted.T)
    )
    return features, odds / odds.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def classifier(finished) -> Classifier:
    return Classifier.load(finished / "run")


def test_predictions_are_those_of_the_model(finished, classifier):
    paths = paths_of(finished)
    features, probabilities = expected(finished, paths)
    found = classifier.predict(paths, top_k=3, embeddings=True)
    assert [p.image for p in found] == [str(path) for path in paths]
    np.testing.assert_allclose([p.embedding for p in found], features, atol=1e-6)
    order = np.argsort(-probabilities, axis=1)[:, :3]
    assert [p.labels for p in found] == [tuple(row) for row in order.tolist()]
    best = np.take_along_axis(probabilities, order, axis=1)
    np.testing.assert_allclose([p.scores for p in found], best, atol=1e-5)
    assert found[0].names == tuple(CLASSES[c] for c in order[0])
    assert (found[0].label, found[0].name) == (order[0, 0], CLASSES[order[0, 0]])
    everything = classifier.predict(paths[0], top_k=99)
    assert len(everything.scores) == 4 and sum(everything.scores) == pytest.approx(1)
    assert everything.embedding is None


def test_paths_images_and_arrays_are_the_same(finished, classifier):
    path = paths_of(finished)[3]
    array = np.asarray(Image.open(path))
    forms = [path, Image.open(path), array]
    one = classifier.predict(str(path), embeddings=True)
    for form in forms:
        other = classifier.predict(form, embeddings=True)
        np.testing.assert_array_equal(other.embedding, one.embedding)
    others = classifier.predict(iter(forms), embeddings=True)  # a larger batch: it may round
    for other in others:
        np.testing.assert_allclose(other.embedding, one.embedding, atol=1e-6)
    assert [other.image for other in others] == [str(path), None, None]
    gray = np.asarray(Image.open(path).convert("L"))
    as_rgb = classifier.predict(np.repeat(gray[:, :, None], 3, axis=2), embeddings=True)
    np.testing.assert_allclose(
        classifier.predict(gray, embeddings=True).embedding, as_rgb.embedding, atol=1e-6
    )
    assert classifier.predict([]) == []
    assert len(classifier.predict(np.stack([array, array, array]))) == 3


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"image 0: expected an array .* of float32"),
        (np.zeros((3, 8, 8), np.uint8), r"found \[3, 8, 8\] of uint8"),
        (np.zeros((0, 8), np.uint8), r"found \[0, 8\] of uint8"),
        (7, "image 0: expected a path, a PIL image or a NumPy array, found int"),
    ],
)
def test_what_is_no_image_is_refused(classifier, image, message):
    images = image if isinstance(image, np.ndarray) else [image]
    with pytest.raises(DataError, match=message):
        classifier.predict(images, on_error="record")


def test_unreadable_images(finished, classifier, tmp_path):
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(b"no image")
    paths = paths_of(finished)[:3]
    images = [torn, paths[0], tmp_path / "missing.png", Image.new("RGB", (0, 4)), *paths[1:]]
    with pytest.raises(UnreadableImage, match=r"torn\.jpg: not an image"):
        classifier.predict(images)
    found = classifier.predict(images, on_error="record")
    assert [bool(p.error) for p in found] == [True, False, True, True, False, False]
    assert [found[1], *found[4:]] == classifier.predict(paths)
    assert found[0].labels == () and "No such file" in found[2].error
    with pytest.raises(DataError, match=r"no prediction for .*torn\.jpg: not an image"):
        _ = found[0].name
    with pytest.raises(ConfigError, match="on_error: expected 'raise' or 'record', found 'skip'"):
        classifier.predict(images, on_error="skip")
    with pytest.raises(ConfigError, match="top_k: expected at least 1, found 0"):
        classifier.predict(images, top_k=0)


def test_a_folder_and_a_pattern_stand_for_their_images(finished, classifier, tmp_path):
    expected = classifier.predict(paths_of(finished)[:3])
    for n, path in enumerate(paths_of(finished)[:3]):
        shutil.copy(path, tmp_path / f"{n}.png")
    (tmp_path / "notes.txt").write_text("no image")
    literal = shutil.copy(paths_of(finished)[0], tmp_path / "[0-9]_x.png")
    assert classifier.predict(str(literal)).names == expected[0].names  # a file of that name
    literal.unlink()
    for images in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/[0-9].png", f"{tmp_path}/**/?.png"):
        found = classifier.predict(images)
        assert [p.names for p in found] == [p.names for p in expected], images
        assert found[0].image == str(Path(found[0].image)) and found[0].image.endswith("0.png")
    for images, message in (
        (f"{tmp_path}/*.jpg", r"no images that '.*\*\.jpg' matches"),
        (f"{tmp_path}/*.txt", "but 1 other files, such as .*notes.txt"),
    ):
        with pytest.raises(DataError, match=message):
            classifier.predict(images)


def test_a_classifier_is_saved_and_shows_its_report(finished, classifier, tmp_path, capsys):
    run_dir = shutil.copytree(finished / "run", tmp_path / "run")
    loaded = Classifier.load(run_dir)
    with pytest.raises(DataError, match=r"results\.json: expected the results of a finished run"):
        loaded.report()
    (run_dir / "results.json").write_text('{"table": "the table", "health": {"verdict": "fine"}}')
    with pytest.raises(DataError, match=r"python -m lattec_jax\.report --workdir="):
        loaded.report()
    (run_dir / "report.html").write_text("<html>")
    (run_dir / "checkpoints").mkdir()
    copy = loaded.save("models/pets")
    assert copy == Path("models/pets") and not (copy / "checkpoints").exists()
    saved = Classifier.load("models/pets")
    paths = paths_of(finished)[:2]
    assert saved.predict(paths) == loaded.predict(paths)
    assert saved.report() == copy / "report.html"
    assert capsys.readouterr().out == "the table\nfine\nreport in models/pets/report.html\n"
    with pytest.raises(ConfigError, match="models/pets exists already; choose another directory"):
        loaded.save("models/pets")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot save the classifier in"):
        loaded.save("file/pets")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["pets"]
    in_memory = Classifier(*run_artifacts.load(run_dir))
    for method in (in_memory.report, lambda: in_memory.save("other")):
        with pytest.raises(DataError, match="was not loaded from a directory"):
            method()


def test_a_stream_takes_a_folder_a_pattern_and_one_path(classifier, finished):
    expected = classifier.predict(finished / "images")
    assert list(classifier.stream(str(finished / "images"))) == expected
    assert list(classifier.stream(f"{finished}/images/*.png")) == expected
    (one,) = classifier.stream(finished / "images/00.png")
    assert (one.image, one.labels) == (expected[0].image, expected[0].labels)


def test_a_stream_is_lazy_and_compiles_once(finished):
    checkpoint, vectors = run_artifacts.load(finished / "run")
    classifier = Classifier(checkpoint, vectors, batch_size=9)  # a size of this test only
    before = classifier._extractor._images._cache_size()
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield np.full((16, 16, 3), len(taken) % 256, np.uint8)

    stream = classifier.stream(endless())
    for _ in range(10):
        next(stream)
    stream.close()
    assert len(taken) <= 10 + 4 * 9
    compiled = classifier._extractor._images._cache_size()
    assert compiled == before + 1
    assert len(classifier.predict(paths_of(finished))) == 21  # 9 + 9 + 3
    assert classifier._extractor._images._cache_size() == compiled
    assert BATCH_SIZE % jax.device_count() == 0


def test_two_models_classify_together(finished):
    checkpoint, vectors = run_artifacts.load(finished / "run")
    frozen = dummy_checkpoint(seed=1)
    both = ZeroShotHeads(vectors.adapted, np.roll(vectors.adapted, 1, axis=0))
    paths = paths_of(finished)[:5]
    found = Classifier(checkpoint, both, pretrained=frozen).predict(paths, top_k=4, embeddings=True)
    first = np.stack([p.embedding for p in found])
    second = Classifier(with_classes(frozen), ZeroShotHeads(vectors.adapted)).predict(
        paths, embeddings=True
    )
    second = np.stack([p.embedding for p in second])
    cosines = 0.5 * (first @ both.adapted.T + second @ both.pretrained.T)
    odds = np.exp(np.exp(float(checkpoint.params["logit_scale"])) * cosines)
    scores = odds / odds.sum(axis=1, keepdims=True)
    np.testing.assert_allclose([p.scores for p in found], -np.sort(-scores, axis=1), atol=1e-5)
    with pytest.raises(ConfigError, match="`pretrained` is missing"):
        Classifier(checkpoint, both)


def with_classes(checkpoint):
    checkpoint.source["class_names"] = list(CLASSES)
    return checkpoint


def test_what_is_missing_in_a_work_directory(finished, tmp_path):
    with pytest.raises(ConfigError, match=r"no directory .*nowhere; expected the work directory"):
        Classifier.load(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"but there is no config\.json either"):
        Classifier.load(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(WeightsError, match="has not finished"):
        Classifier.load(tmp_path)
    copy = shutil.copytree(finished / "run", tmp_path / "copy")
    (copy / "model/model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        Classifier.load(copy)
    shutil.copytree(finished / "run/model", copy / "model", dirs_exist_ok=True)
    (copy / "classifier.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightsError, match="not a readable"):
        Classifier.load(copy)
    safetensors.numpy.save_file(
        {"classifier": np.zeros((3, 16), np.float32)}, copy / "classifier.safetensors"
    )
    with pytest.raises(WeightsError, match=r"expected class weights of the shape \(4, 16\)"):
        Classifier.load(copy)
    for wrong in (np.full((4, 16), np.nan, np.float32), np.zeros((4, 16), np.int32)):
        safetensors.numpy.save_file({"classifier": wrong}, copy / "classifier.safetensors")
        with pytest.raises(WeightsError, match="expected finite numbers"):
            Classifier.load(copy)
    (copy / "classifier.safetensors").unlink()
    (copy / "classifier.safetensors").mkdir()
    with pytest.raises(WeightsError, match="expected a regular file, found a directory"):
        Classifier.load(copy)
    (copy / "classifier.safetensors").rmdir()
    shutil.copy(finished / "run/classifier.safetensors", copy)
    config = json.loads((copy / "model/config.json").read_text())
    for source, message in (([1], "source: expected an object"), ("cats", "list of class names")):
        source = {"class_names": source} if isinstance(source, str) else source
        (copy / "model/config.json").write_text(json.dumps({**config, "source": source}))
        with pytest.raises(WeightsError, match=message):
            Classifier.load(copy)


def test_a_model_that_is_not_finite_is_refused(finished, tmp_path):
    copy = shutil.copytree(finished / "run", tmp_path / "copy")
    checkpoint, _ = run_artifacts.load(copy)
    checkpoint.params["text/projection"] = np.full_like(
        checkpoint.params["text/projection"], np.inf
    )
    shutil.rmtree(copy / "model")
    Checkpoint(
        checkpoint.config, checkpoint.params, checkpoint.tokenizer, checkpoint.preprocess,
        checkpoint.source,
    ).save(copy / "model")  # fmt: skip
    with pytest.raises(WeightsError, match="infinity in text/projection"):
        Classifier.load(copy)


@pytest.fixture
def loaded_once(finished, classifier, monkeypatch) -> None:
    """The command takes the finished run's classifier as it is there: compiled already."""
    load = Classifier.load

    def known(directory: str) -> Classifier:
        return classifier if directory == str(finished / "run") else load(directory)

    monkeypatch.setattr(Classifier, "load", known)


def run(*arguments: object) -> int:
    """The exit status of the command."""
    try:
        predict.main(["predict", *map(str, arguments)])
    except SystemExit as ended:
        return ended.code
    return 0


STRANGE = ["new\nline.png", 'com,ma "quoted".png', "cr\rcr.png", "été 猫.png", "\udcff\udcfe.png"]


@pytest.fixture
def strange(finished, loaded_once, tmp_path) -> Path:
    """A folder of images with strange names, one of which cannot be read; the place to work."""
    (tmp_path / "folder").mkdir()
    for name, path in zip(STRANGE, paths_of(finished), strict=False):
        shutil.copy(path, tmp_path / "folder" / name)
    (tmp_path / "folder/torn,\n.png").write_bytes(b"torn")
    return tmp_path


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_command_writes_every_name_so_that_it_comes_back(finished, strange, classifier, capfd):
    run_dir = finished / "run"
    names = [f"folder/{name}" for name in [*STRANGE, "torn,\n.png"]]
    assert run(f"--workdir={run_dir}", "--top=2", "--out=a.csv", "folder") == 1
    assert capfd.readouterr().out.endswith(f"predictions of {len(names)} images in a.csv\n")
    assert run(f"--workdir={run_dir}", "--top=2", "--out=a.jsonl", "folder") == 1
    rows, lines = read_csv(strange / "a.csv"), read_jsonl(strange / "a.jsonl")
    assert {row["image"] for row in rows} == set(names) == {line["image"] for line in lines}
    for row, line in zip(rows, lines, strict=True):
        assert row["image"] == line["image"]
        if "torn" in row["image"]:
            assert row["error"] == line["error"] and "not an image" in row["error"]
            assert row["class"] == row["score_2"] == "" and "class" not in line
            continue
        found = classifier.predict(row["image"], top_k=2)
        assert (row["class"], row["class_2"]) == found.names
        assert (int(row["label"]), int(row["label_2"])) == found.labels
        assert float(row["score"]) == line["score"] == pytest.approx(found.score, abs=1e-6)
        assert line["label"] == found.label and len(line["top"]) == 2
    shown = capfd.readouterr()
    assert "unreadable: folder/torn,\\n.png: not an image" in shown.err
    (strange / "long.txt").write_text("x" * 500_000 + "\n")
    assert run(f"--workdir={run_dir}", "--list=long.txt", "--out=long.csv") == 1
    assert len(capfd.readouterr().err) < 10_000

    assert run(f"--workdir={run_dir}", "folder") == 1
    table = capfd.readouterr().out
    assert len(table.splitlines()) == len(STRANGE) and "new\\nline.png" in table


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_cut_at_any_byte_continues_to_the_same(finished, strange, classifier, kind):
    settings = classifier.identity
    paths = [f"folder/{name}" for name in sorted([*STRANGE, "torn,\n.png"])]
    out = strange / f"whole.{kind}"
    assert run(f"--workdir={finished / 'run'}", f"--out={out}", "folder") == 1
    whole = out.read_bytes()
    for cut in range(len(whole) + 1):
        out.write_bytes(whole[:cut])
        with prediction_files.PredictionFile(out, kind, 1, settings) as file:
            assert file.done <= set(paths)
            kept = out.read_bytes()
            assert whole.startswith(kept)
            assert len(file.done) == whole_records(kept, kind)
    out.write_bytes(whole[: len(whole) // 2])
    assert run(f"--workdir={finished / 'run'}", f"--out={out}", "folder") == 1
    assert out.read_bytes() == whole


def whole_records(content: bytes, kind: str) -> int:
    if kind == "jsonl":
        return content.count(b"\n")
    text = content.decode("utf-8", "surrogateescape")
    return max(len(list(csv.reader(text.splitlines(keepends=True)))) - 1, 0)


def test_a_file_of_other_settings_is_refused(finished, strange):
    run_dir = finished / "run"
    assert run(f"--workdir={run_dir}", "--out=a.jsonl", paths_of(finished)[0]) == 0
    with pytest.raises(ConfigError, match=r"made with other settings[\s\S]*top: was 1, is now 2"):
        run(f"--workdir={run_dir}", "--out=a.jsonl", "--top=2", paths_of(finished)[0])
    other = shutil.copytree(run_dir, strange / "other")
    changed = dummy_checkpoint(seed=3)
    with_classes(changed).save(other / "model")
    with pytest.raises(ConfigError, match="model_sha256: was"):
        run(f"--workdir={other}", "--out=a.jsonl", paths_of(finished)[0])
    (strange / "mine.csv").write_text("a,b\n")
    with pytest.raises(
        ConfigError, match=r"mine\.csv\.settings\.json cannot be read: .*mine\.csv exists"
    ):
        run(f"--workdir={run_dir}", "--out=mine.csv", paths_of(finished)[0])
    with open(strange / "a.jsonl", "a") as file:
        file.write('{"foreign": 1}\n')
    with pytest.raises(DataError, match="record 2: expected a line of python -m lattec_jax"):
        run(f"--workdir={run_dir}", "--out=a.jsonl", paths_of(finished)[0])
    with open(strange / "a.jsonl", "rb+") as file:
        file.truncate((strange / "a.jsonl").read_bytes().index(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        file.write(b'{"image": ["a"]}\n')
    with pytest.raises(DataError, match="record 2: expected a line of python -m lattec_jax"):
        run(f"--workdir={run_dir}", "--out=a.jsonl", paths_of(finished)[0])
    (strange / "a.jsonl.settings.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"a\.jsonl\.settings\.json: expected a JSON object"):
        run(f"--workdir={run_dir}", "--out=a.jsonl", paths_of(finished)[0])
    looked = re.escape(f"(looked in {Path.cwd()})")
    with pytest.raises(DataError, match=f"no image or folder a{{300}} {looked}$"):
        run(f"--workdir={run_dir}", "a" * 300)
    with pytest.raises(DataError, match=r"no image or folder /none/5\.jpg$"):
        run(f"--workdir={run_dir}", "/none/5.jpg")
    with pytest.raises(ConfigError, match="no directory nowhere"):  # not the image
        run("--workdir=nowhere", "missing.png")
    with pytest.raises(ConfigError, match="a table cannot be continued"):
        run(f"--workdir={run_dir}", "--out=b", "--format=table", paths_of(finished)[0])
    with pytest.raises(DataError, match=r"cannot write .*nowhere"):
        run(f"--workdir={run_dir}", "--out=nowhere/b.csv", paths_of(finished)[0])
    with (
        prediction_files.PredictionFile(strange / "held.csv", "csv", 1, {}),
        pytest.raises(DataError, match="is being written by another process"),
    ):
        prediction_files.PredictionFile(strange / "held.csv", "csv", 1, {})


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_full_disk_is_said_with_the_file_and_nothing_is_lost(finished, strange, kind):
    command = (f"--workdir={finished / 'run'}", f"--out=a.{kind}", finished / "images")
    with no_room(1000), pytest.raises(DataError, match=rf"cannot write a\.{kind}: .*make room"):
        run(*command)
    before = (strange / f"a.{kind}").read_bytes()
    assert len(before) == 1000  # full, within a line
    assert run(*command) == 0
    assert whole_records((strange / f"a.{kind}").read_bytes(), kind) == 21
    assert (strange / f"a.{kind}").read_bytes().startswith(before[: before.rindex(b"\n")])


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfa.png\r\n\r\nb.png\r\n")
    assert prediction_files.read_list(tmp_path / "list") == ["a.png", "b.png"]


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
def test_lists_of_files(finished, strange, separator):
    names = [os.fspath(p) for p in paths_of(finished)[:3]]
    names += ["folder/été 猫.png", "folder/\udcff\udcfe.png", "missing.png", names[0]]
    if separator == "\0":
        names.append("folder/new\nline.png")
    (strange / "list").write_bytes(os.fsencode(separator.join(names)))
    assert run(f"--workdir={finished / 'run'}", "--list=list", "--out=a.jsonl") == 1
    lines = read_jsonl(strange / "a.jsonl")
    assert [line["image"] for line in lines] == list(dict.fromkeys(names))
    assert [line["image"] for line in lines if "error" in line] == ["missing.png"]
    (strange / "empty").write_text("\n")
    with pytest.raises(DataError, match="names no images"):
        run(f"--workdir={finished / 'run'}", "--list=empty")


def test_importing_it_brings_jax_only_when_asked():
    code = (
        "import sys, lattec_jax\n"
        "assert not {'jax', 'numpy', 'PIL'} & set(sys.modules)\n"
        "from lattec_jax import Classifier\n"
        "assert 'jax' in sys.modules\n"
        "try:\n    lattec_jax.Classifer\nexcept AttributeError as e:\n    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "has no attribute 'Classifer'" in done.stdout
