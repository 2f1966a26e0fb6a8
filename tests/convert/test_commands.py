from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from convert import flax_to_openclip, names, open_clip_package
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.word_level import word_tokenizer
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.runtime.errors import WeightsError
from tests.convert.conftest import FLAGS, PREPROCESS_CFG, random_tensors, to_flax
from tests.openclip_models import model_cfg, random_open_clip, shrunken, state_dict
from tests.torch_fix import define_missing_torchvision_operators

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="needs open_clip's model configurations"
)


def to_open_clip(*arguments: object) -> None:
    flax_to_openclip.main(["flax_to_openclip", *map(str, arguments)])


def assert_same_file(path: Path, expected: dict[str, np.ndarray]) -> None:
    found = safetensors.numpy.load_file(path)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def test_there_and_back_and_there_without_flags(hub_folder, tmp_path):
    weights = hub_folder / "open_clip_model.safetensors"
    to_flax(f"--pretrained={weights}", f"--out={tmp_path / 'flax'}")
    checkpoint = Checkpoint.load(tmp_path / "flax")
    assert checkpoint.preprocess == Preprocess.from_open_clip(PREPROCESS_CFG, 32)
    assert checkpoint.tokenizer("a")[0, :3].tolist() == [49406, 320, 49407]
    assert checkpoint.source["pretrained"] == "open_clip_model.safetensors"
    assert "converted_to_float32_from" not in checkpoint.source

    exported = tmp_path / "back" / "open_clip_model.safetensors"
    to_open_clip(f"--checkpoint={tmp_path / 'flax'}", f"--out={exported}")
    assert_same_file(exported, safetensors.numpy.load_file(weights))
    assert sorted(path.name for path in exported.parent.iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    to_flax(f"--pretrained={exported}", f"--out={tmp_path / 'again'}")
    again = Checkpoint.load(tmp_path / "again")
    assert again.sha256 == checkpoint.sha256
    assert (again.config, again.preprocess) == (checkpoint.config, checkpoint.preprocess)


@pytest.mark.full
def test_open_clip_reads_what_was_exported(hub_folder, tmp_path):
    torch = pytest.importorskip("torch")
    define_missing_torchvision_operators()
    import open_clip

    to_flax(f"--pretrained={hub_folder / 'open_clip_model.safetensors'}", f"--out={tmp_path / 'f'}")
    to_open_clip(f"--checkpoint={tmp_path / 'f'}", f"--out={tmp_path / 'o' / 'any.safetensors'}")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'o'}")
    original = open_clip.create_model(f"local-dir:{hub_folder}")
    for (name, found), (_, expected) in zip(
        model.state_dict().items(), original.state_dict().items(), strict=True
    ):
        assert torch.equal(found, expected), name
    for key, value in model.visual.preprocess_cfg.items():
        expected = original.visual.preprocess_cfg[key]
        assert np.array_equal(np.asarray(value), np.asarray(expected)), key


@pytest.mark.parametrize("size", ["shrunken", pytest.param("whole", marks=pytest.mark.full)])
def test_randomized_vit_b_32_from_a_file(size, tmp_path, monkeypatch):
    config = model_cfg("ViT-B-32") if size == "whole" else shrunken("ViT-B-32")
    monkeypatch.setattr(open_clip_package, "built_in_model_cfg", lambda _: config)
    tensors = state_dict(random_open_clip(config))
    weights = tmp_path / "vit_b_32.safetensors"
    safetensors.numpy.save_file(tensors, weights)
    to_flax("--model=ViT-B-32", f"--pretrained={weights}", *FLAGS, f"--out={tmp_path / 'flax'}")
    to_open_clip(f"--checkpoint={tmp_path / 'flax'}", f"--out={tmp_path / 'back.safetensors'}")
    assert_same_file(tmp_path / "back.safetensors", tensors)
    checkpoint = Checkpoint.load(tmp_path / "flax")
    assert checkpoint.config == CLIPConfig.from_open_clip(config)
    assert checkpoint.preprocess.resize_mode == "squash"


def test_a_safetensors_file_needs_neither_torch_nor_jax_nor_the_import_of_open_clip(
    hub_folder, tmp_path
):
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['torchvision'] = sys.modules['jax'] = None\n"
        "from convert import flax_to_openclip, openclip_to_flax\n"
        "openclip_to_flax.main(['', '--pretrained=' + sys.argv[1], '--out=' + sys.argv[2]])\n"
        "flax_to_openclip.main(['', '--checkpoint=' + sys.argv[2], '--out=' + sys.argv[3]])\n"
        "assert 'open_clip' not in sys.modules\n"
    )
    weights, out = hub_folder / "open_clip_model.safetensors", tmp_path / "flax"
    back = tmp_path / "back.safetensors"
    subprocess.run([sys.executable, "-c", code, weights, out, back], check=True)
    assert_same_file(back, safetensors.numpy.load_file(weights))


@pytest.mark.parametrize("command", ["openclip_to_flax", "flax_to_openclip"])
def test_user_errors_have_no_traceback(command, tmp_path):
    flags = (
        ["--pretrained", "--out"] if command == "openclip_to_flax" else ["--checkpoint", "--out"]
    )
    arguments = [f"{flags[0]}={tmp_path / 'none.safetensors'}", f"{flags[1]}={tmp_path / 'out'}"]
    run = [sys.executable, "-m", f"convert.{command}"]
    done = subprocess.run([*run, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    shown = subprocess.run([*run, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(flag in shown for flag in flags)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.full
def test_half_precision_becomes_float32_and_says_so(hub_folder, tmp_path, dtype, capsys):
    weights = hub_folder / "open_clip_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    half = {name: array.astype(kind) for name, array in tensors.items() if name != "logit_scale"}
    safetensors.numpy.save_file({**half, "logit_scale": tensors["logit_scale"]}, weights)
    to_flax(f"--pretrained={weights}", f"--out={tmp_path / 'flax'}")
    checkpoint = Checkpoint.load(tmp_path / "flax")
    found = checkpoint.source["converted_to_float32_from"]
    assert found == {dtype: len(half)}
    assert f"converted to float32: {len(half)} tensors of {dtype}\n" in capsys.readouterr().out
    projection = checkpoint.params["visual/projection"]
    np.testing.assert_array_equal(projection, half["visual.proj"].astype(np.float32))


@pytest.mark.full
def test_exports_overwrite_nothing(hub_folder, tmp_path):
    weights = hub_folder / "open_clip_model.safetensors"
    to_flax(f"--pretrained={weights}", f"--out={tmp_path / 'flax'}")
    checkpoint = f"--checkpoint={tmp_path / 'flax'}"
    with pytest.raises(WeightsError, match="exists and is not overwritten"):
        to_open_clip(checkpoint, f"--out={weights}")
    with pytest.raises(WeightsError, match="belongs to other weights"):
        to_open_clip(checkpoint, f"--out={hub_folder / 'other.safetensors'}")
    with pytest.raises(WeightsError, match=r"ends in \.safetensors"):
        to_open_clip(checkpoint, f"--out={tmp_path / 'weights.pt'}")


def test_prefix_of_the_text_tower_and_text_cleaning_survive(hub_folder, tmp_path):
    path, weights = hub_folder / "open_clip_config.json", hub_folder / "open_clip_model.safetensors"
    content = json.loads(path.read_text())
    content["model_cfg"]["custom_text"] = True
    content["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    path.write_text(json.dumps(content))
    tensors = {
        name if name.startswith(("visual.", "logit")) else f"text.{name}": array
        for name, array in safetensors.numpy.load_file(weights).items()
    }
    safetensors.numpy.save_file(tensors, weights)
    to_flax(f"--pretrained={weights}", f"--out={tmp_path / 'flax'}")
    exported = tmp_path / "back" / "open_clip_model.safetensors"
    to_open_clip(f"--checkpoint={tmp_path / 'flax'}", f"--out={exported}")
    assert_same_file(exported, tensors)
    exported_cfg = json.loads((exported.parent / "open_clip_config.json").read_text())["model_cfg"]
    assert exported_cfg["custom_text"] is True
    assert exported_cfg["text_cfg"]["tokenizer_kwargs"] == {"clean": "canonicalize"}


def test_another_tokenizer_is_pointed_out(tmp_path, capsys):
    config = CLIPConfig(
        embed_dim=6,
        vision=VisionConfig(width=8, layers=1, heads=2, patch_size=4, image_size=(8, 8)),
        text=TextConfig(width=4, layers=1, heads=1, context_length=5, vocab_size=7),
    )
    checkpoint = Checkpoint(
        config=config,
        params=names.to_flax(random_tensors(config), config, "random"),
        tokenizer=word_tokenizer(["one", "two", "three"], context_length=5),
        preprocess=Preprocess(size=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        source={},
    )
    checkpoint.save(tmp_path / "flax")
    exported = tmp_path / "out" / "model.safetensors"
    to_open_clip(f"--checkpoint={tmp_path / 'flax'}", f"--out={exported}")
    assert "open_clip cannot read this model's tokenizer" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="not the model's tokenizer"):
        to_flax(f"--pretrained={exported}", f"--out={tmp_path / 'again'}")
