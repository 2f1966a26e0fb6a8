"""Exports, compared with open_clip and transformers, and their `use.py`, run unchanged."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from convert import export, open_clip_package, to_huggingface
from lattec_jax import Classifier
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.clip_bpe import clip_tokenizer
from lattec_jax.data.text.tokenizer import Tokenizer
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.runtime.config import parse, to_json
from lattec_jax.runtime.errors import ConfigError, WeightsError
from tests.no_room import no_room
from tests.openclip_models import ARCHITECTURES, flat_params, random_open_clip, shrunken
from tests.torch_fix import define_missing_torchvision_operators

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="needs open_clip's model configurations"
)
ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["cat", "Hündin", 'a "bird", or 鳥']
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.3, 0.2)


@functools.cache
def tokenizer() -> Tokenizer:
    return clip_tokenizer(open_clip_package.vocabulary_path())


def model_of(architecture: str, seed: int = 0, **preprocess: str) -> tuple[object, Checkpoint]:
    """Return a random model of open_clip, also as a checkpoint."""
    name, vision, text = ARCHITECTURES[architecture]
    cfg = shrunken(name, vision, text)
    model = random_open_clip(cfg, seed)
    config, params = flat_params(model, cfg)
    size = config.vision.image_size
    checkpoint = Checkpoint(
        config,
        params,
        tokenizer(),
        Preprocess(size, MEAN, STD, **preprocess),
        {"model": name, "class_names": CLASSES},
    )
    return model, checkpoint


def vectors(seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((3, 24)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def finished_run(place: Path, checkpoint: Checkpoint) -> Path:
    """Write the files of a finished run."""
    checkpoint.save(place / "run/model")
    safetensors.numpy.save_file({"classifier": vectors(0)}, place / "run/classifier.safetensors")
    return place / "run"


def images(place: Path) -> list[Path]:
    """All modes, odd sizes; one has the model's size."""
    rng = np.random.default_rng(1)
    paths = []
    for n, (height, width) in enumerate([(47, 33), (33, 50), (32, 32), (61, 60), (20, 31)]):
        pixels = rng.integers(0, 56 + 50 * n, (height, width, 3)).astype(np.uint8)
        paths.append(place / f"{n}.png")
        mode = ("RGB", "L", "RGB", "P", "RGBA")[n]
        Image.fromarray(pixels).convert(mode).save(paths[-1])
    return paths


def use(directory: Path, paths: list[Path]) -> list[dict]:
    """Return the output of `python DIR/use.py`, run in this process, which already has PyTorch."""
    define_missing_torchvision_operators()
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["use.py", *map(str, paths)])
        runpy.run_path(str(directory / "use.py"), run_name="__main__")
    return [json.loads(line) for line in printed.getvalue().splitlines()]


def assert_same_predictions(directory: Path, run: Path, paths: list[Path]) -> None:
    classifier = Classifier.load(run)
    found, ours = use(directory, paths), classifier.predict(paths, top_k=3)
    assert [line["image"] for line in found] == list(map(str, paths))
    for line, own in zip(found, ours, strict=True):
        scores = np.zeros(3)
        scores[list(own.labels)] = own.scores
        np.testing.assert_allclose(line["scores"], scores, atol=1e-5)
        assert line["class"] == own.name
    assert np.ptp([line["scores"] for line in found], axis=0).max() > 1e-2


@pytest.mark.parametrize(
    ("to", "architecture", "preprocess"),
    [
        ("openclip", "plain", {}),
        ("huggingface", "plain", {"interpolation": "bilinear"}),
        pytest.param(
            *("openclip", "no_ln_pre_avg_pool_no_mask", {"resize_mode": "longest"}),
            marks=pytest.mark.full,
        ),
        pytest.param(
            *("huggingface", "quick_gelu", {"resize_mode": "squash"}), marks=pytest.mark.full
        ),
    ],
)
def test_the_script_gives_the_same_predictions(to, architecture, preprocess, tmp_path, capsys):
    _, checkpoint = model_of(architecture, **preprocess)
    run = finished_run(tmp_path, checkpoint)
    out = tmp_path / "out"
    export.main(["export", f"--workdir={run}", f"--to={to}", f"--out={out}"])
    shown = capsys.readouterr().out
    written = sorted(path.name for path in out.iterdir())
    assert {"classes.json", "prototypes.safetensors", "use.py"} < set(written)
    assert shown.splitlines()[-2:] == [
        f"wrote {', '.join(written)} to {out}",
        f"next: python {out / 'use.py'} IMAGE ...",
    ]
    assert_same_predictions(out, run, images(tmp_path))
    classes = json.loads((out / "classes.json").read_text(encoding="utf-8"))
    assert classes["class_names"] == CLASSES
    assert classes["model_sha256"] == checkpoint.sha256
    with pytest.raises(WeightsError, match="is not an empty folder"):
        export.export(run, to, out)


@pytest.mark.full
@pytest.mark.parametrize("to", ["openclip", "huggingface"])
def test_the_script_runs_as_a_process(to, tmp_path):
    run = finished_run(tmp_path, model_of("plain")[1])
    export.export(run, to, tmp_path / "out")
    paths = images(tmp_path)
    code = (  # torchvision is made importable first (tests/torch_fix)
        "import runpy, sys\nfrom tests.torch_fix import define_missing_torchvision_operators\n"
        "define_missing_torchvision_operators()\nsys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out/use.py"), *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == use(tmp_path / "out", paths)


@pytest.mark.full
@pytest.mark.parametrize("to", ["openclip", "huggingface"])
def test_two_models_are_exported_together(to, tmp_path):
    run = finished_run(tmp_path, model_of("plain")[1])
    _, pretrained = model_of("plain", seed=1)
    pretrained.save(tmp_path / "weights")
    both = {"classifier": vectors(0), "frozen_class_weights": vectors(1)}
    safetensors.numpy.save_file(both, run / "classifier.safetensors")
    config, _ = parse(["train", "--config=configs/demo.py", f"--config.weights={tmp_path}/weights"])
    (run / "config.json").write_text(to_json(config))
    (run / "inputs.json").write_text(json.dumps({"weights_sha256": pretrained.sha256}))
    export.export(run, to, tmp_path / "out")
    assert (tmp_path / "out/pretrained").is_dir()
    assert_same_predictions(tmp_path / "out", run, images(tmp_path))
    export.export(run, "prototypes", tmp_path / "vectors")
    assert sorted(p.name for p in (tmp_path / "vectors").iterdir()) == [
        "classes.json",
        "prototypes.safetensors",
    ]
    found = safetensors.numpy.load_file(tmp_path / "vectors/prototypes.safetensors")
    np.testing.assert_array_equal(found["prototypes"], vectors(0))
    np.testing.assert_array_equal(found["frozen_prototypes"], vectors(1))


def with_clip_model(checkpoint: Checkpoint, place: Path):
    """transformers' model of the exported directory."""
    pytest.importorskip("torch")
    define_missing_torchvision_operators()
    from transformers import CLIPModel

    run = finished_run(place, checkpoint)
    export.export(run, "huggingface", place / "out")
    model, report = CLIPModel.from_pretrained(place / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize(
    "architecture", ["plain", "quick_gelu", "head_width_and_mlp_ratio", "norm_epsilon"]
)
def test_features_of_both_towers_are_open_clips(architecture, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    if architecture == "norm_epsilon":  # whose text is read at the last token otherwise
        name, vision, text = ARCHITECTURES[architecture]
        changed = {**text, "pool_type": "argmax"}
        monkeypatch.setitem(ARCHITECTURES, architecture, (name, vision, changed))
    model, checkpoint = model_of(architecture)
    theirs = with_clip_model(checkpoint, tmp_path)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = torch.from_numpy(checkpoint.tokenizer(["a cat", "two dogs, running"])).long()
    with torch.no_grad():
        found = theirs(input_ids=tokens, pixel_values=images)
        torch.testing.assert_close(
            found.image_embeds, model.encode_image(images, normalize=True), atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            found.text_embeds, model.encode_text(tokens, normalize=True), atol=1e-5, rtol=1e-5
        )
        assert float(theirs.logit_scale) == float(model.logit_scale)


def test_the_tokenizer_and_the_processor_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    _, checkpoint = model_of("plain")
    theirs = with_clip_model(checkpoint, tmp_path)
    from transformers import AutoTokenizer, CLIPImageProcessor

    texts = ["A photo  of a\tCAT!", "Hündin, 2 größer's", "鳥 🐦", "", "word " * 100]
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    found = exported(texts, padding="max_length", truncation=True, return_tensors="pt")
    ours = checkpoint.tokenizer(texts)
    for row, own in zip(found["input_ids"].numpy(), ours, strict=True):
        length = int(own.argmax()) + 1
        np.testing.assert_array_equal(row[:length], own[:length])
    with torch.no_grad():
        text = theirs.text_model(input_ids=found["input_ids"]).pooler_output
        own = theirs.text_model(input_ids=torch.from_numpy(ours).long()).pooler_output
    torch.testing.assert_close(text, own)

    processor = CLIPImageProcessor.from_pretrained(tmp_path / "out")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    pixels = checkpoint.preprocess.pixels(image) / 255
    expected = ((pixels - MEAN) / STD).transpose(2, 0, 1)
    shown = processor(image, return_tensors="pt")["pixel_values"][0]
    np.testing.assert_allclose(shown.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("layer_scale", "it has layer scale"),
        ("no_ln_pre_avg_pool_no_mask", "pooling 'avg'.*no layer norm before.*without a causal"),
        ("eos_pool", "the end token 2"),
        ("rectangular", r"images of \(32, 48\) that are not square"),
        ("norm_epsilon", "text pooling 'last'"),
    ],
)
def test_what_clip_model_cannot_represent_is_refused(architecture, message, tmp_path):
    run = finished_run(tmp_path, model_of(architecture)[1])
    with pytest.raises(WeightsError, match=message + r"[\s\S]*--to=openclip"):
        export.export(run, "huggingface", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_preprocessing_and_tokenizers_that_it_cannot_have(tmp_path):
    _, checkpoint = model_of("plain", resize_mode="longest")
    with pytest.raises(WeightsError, match="preprocessing 'longest'"):
        to_huggingface.refuse_unrepresentable(checkpoint)


def test_output_folders_that_are_refused(tmp_path, monkeypatch):
    run = finished_run(tmp_path, model_of("plain")[1])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name, message in (
        ("file", "is not an empty folder"),
        ("link", "is not an empty folder"),
        ("file/below", "a folder above it is a file"),
    ):
        with pytest.raises(WeightsError, match=message):
            export.export(run, "prototypes", tmp_path / name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(WeightsError, match="is the working directory"):
        export.export(run, "prototypes", Path("."))


@pytest.mark.parametrize("to", ["openclip", "huggingface"])
def test_a_full_disk_leaves_nothing(to, tmp_path):
    run = finished_run(tmp_path, model_of("plain")[1])
    with no_room(20_000), pytest.raises(OSError, match="File too large"):
        export.export(run, to, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_no_finished_run(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(WeightsError, match="expected the work directory of a finished run"):
        export.export(tmp_path / "run", "openclip", tmp_path / "out")
    with pytest.raises(ConfigError, match="no directory"):
        export.export(tmp_path / "nowhere", "openclip", tmp_path / "out")
