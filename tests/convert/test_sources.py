from __future__ import annotations

import importlib.util
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from convert import open_clip_package, openclip_to_flax, sources
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.config import CLIPConfig
from lattec_jax.runtime.errors import ConfigError, WeightsError
from tests.convert.conftest import FLAGS, to_flax
from tests.openclip_models import use_shrunken_models
from tests.torch_fix import define_missing_torchvision_operators

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="needs open_clip's model configurations"
)


@pytest.fixture
def tags(monkeypatch, hub_folder):
    """open_clip with its network replaced by one file of a shrunken architecture."""
    open_clip = use_shrunken_models(monkeypatch)
    weights = hub_folder / "open_clip_model.safetensors"
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(weights))
    return open_clip


def test_a_tag_determines_preprocessing_and_activation(tags, tmp_path):
    to_flax("--model=ViT-B-32", "--pretrained=laion2b_s34b_b79k", f"--out={tmp_path / 'a'}")
    checkpoint = Checkpoint.load(tmp_path / "a")
    assert checkpoint.source["model"] == "ViT-B-32"
    assert checkpoint.source["pretrained"] == "laion2b_s34b_b79k"
    assert not checkpoint.config.quick_gelu
    expected = tags.get_pretrained_cfg("ViT-B-32", "laion2b_s34b_b79k")
    assert checkpoint.preprocess == Preprocess.from_open_clip(expected, 32)
    # Weights trained with QuickGELU are converted with it, whatever the architecture's name.
    for model in ("ViT-B-32", "ViT-B-32-quickgelu"):
        to_flax(f"--model={model}", "--pretrained=openai", f"--out={tmp_path / 'b'}")
        assert Checkpoint.load(tmp_path / "b").config.quick_gelu


def test_a_file_can_take_the_preprocessing_of_a_tag(tags, hub_folder, tmp_path):
    (hub_folder / "open_clip_config.json").unlink()
    weights = hub_folder / "open_clip_model.safetensors"
    to_flax(
        "--model=ViT-B-32",
        f"--pretrained={weights}",
        "--preprocess-of=metaclip_400m",
        f"--out={tmp_path / 'flax'}",
    )
    checkpoint = Checkpoint.load(tmp_path / "flax")
    expected = tags.get_pretrained_cfg("ViT-B-32", "metaclip_400m")
    assert checkpoint.preprocess == Preprocess.from_open_clip(expected, 32)
    assert checkpoint.config.quick_gelu == expected["quick_gelu"]
    assert checkpoint.source["preprocess"] == "--preprocess-of=metaclip_400m"


def test_every_plain_tag_is_known_and_resolved_as_open_clip_does():
    pytest.importorskip("torch")
    define_missing_torchvision_operators()
    import open_clip
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    read = 0
    for model, tag in open_clip.list_pretrained():
        try:
            config = CLIPConfig.from_open_clip(open_clip_package.built_in_model_cfg(model), model)
        except WeightsError:
            continue
        tag_cfg = open_clip_package.pretrained_cfg(model, tag)
        ours = Preprocess.from_open_clip(tag_cfg, config.vision.image_size)
        expected = merge_preprocess_dict(PreprocessCfg(), tag_cfg)
        for key in ("mean", "std", "interpolation", "resize_mode", "fill_color"):
            assert getattr(ours, key) == expected[key], (model, tag, key)
        assert ours.size == config.vision.image_size
        read += 1
    assert read == 92


def test_failed_downloads_and_unknown_names_say_what_to_do(tags, monkeypatch, tmp_path):
    out = f"--out={tmp_path / 'flax'}"

    def offline(_: dict) -> str:
        raise FileNotFoundError("Failed to download file")

    monkeypatch.setattr(tags, "download_pretrained", offline)
    with pytest.raises(WeightsError, match=r"could not be downloaded.*hf download timm/.*HF_HOME"):
        to_flax("--model=ViT-B-32", "--pretrained=openai", out)
    with pytest.raises(WeightsError, match=r"Did you mean 'laion2b_s34b_b79k'\?.*Tags of ViT-B-32"):
        to_flax("--model=ViT-B-32", "--pretrained=laion2b_s34b_b79", out)
    with pytest.raises(WeightsError, match=r"no model 'ViTB32'.*Did you mean 'ViT-B-32'\?"):
        to_flax("--model=ViTB32", "--pretrained=openai", out)
    with pytest.raises(ConfigError, match="needs --model=NAME"):
        to_flax("--pretrained=openai", out)
    with pytest.raises(ConfigError, match="a tag has its own preprocessing"):
        to_flax("--model=ViT-B-32", "--pretrained=openai", *FLAGS, out)


def test_unknown_preprocessing_names_the_ways(hub_folder, tmp_path):
    weights, out = hub_folder / "open_clip_model.safetensors", f"--out={tmp_path / 'flax'}"
    with pytest.raises(
        WeightsError, match=r"from exactly one source, found open_clip_config\.json and --mean"
    ):
        to_flax(f"--pretrained={weights}", *FLAGS, out)
    (hub_folder / "open_clip_config.json").unlink()
    with pytest.raises(WeightsError, match=r"pass --model=NAME.*open_clip_config\.json"):
        to_flax(f"--pretrained={weights}", out)
    with pytest.raises(WeightsError, match=r"found none.*--preprocess-of=TAG.*--mean=R,G,B"):
        to_flax("--model=ViT-B-32", f"--pretrained={weights}", out)
    with pytest.raises(ConfigError, match="given together; missing: resize_mode"):
        to_flax("--model=ViT-B-32", f"--pretrained={weights}", *FLAGS[:3], out)
    with pytest.raises(WeightsError, match="tensors do not fit"):  # it is a shrunken one
        to_flax("--model=ViT-B-32", f"--pretrained={weights}", *FLAGS, out)
    assert not (tmp_path / "flax").exists()


def test_configuration_beside_the_file_is_checked(hub_folder, tmp_path):
    weights, out = hub_folder / "open_clip_model.safetensors", f"--out={tmp_path / 'flax'}"
    path = hub_folder / "open_clip_config.json"
    content = json.loads(path.read_text())
    with pytest.raises(WeightsError, match=r"--model=ViT-L-14 is not the model of"):
        to_flax("--model=ViT-L-14", f"--pretrained={weights}", out)
    path.write_text(json.dumps({"model_cfg": content["model_cfg"]}))
    with pytest.raises(WeightsError, match="found none"):
        to_flax(f"--pretrained={weights}", out)
    for key, value, message in (
        ("tokenizer_kwargs", {"reduction_mask": "simple"}, "reduction_mask"),
    ):
        text = {**content["model_cfg"]["text_cfg"], key: value}
        changed = {**content["model_cfg"], "text_cfg": text}
        path.write_text(json.dumps({**content, "model_cfg": changed}))
        with pytest.raises(WeightsError, match=message):
            to_flax(f"--pretrained={weights}", out)
    del content["model_cfg"]["vision_cfg"]["width"]
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"vision_cfg\.width is missing"):
        to_flax(f"--pretrained={weights}", out)
    for damaged in ("{", "[]"):
        path.write_text(damaged)
        with pytest.raises(WeightsError, match=r"open_clip_config\.json"):
            to_flax(f"--pretrained={weights}", out)


@pytest.mark.parametrize("model", ["RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP", "convnext_base"])
def test_other_architectures_are_refused(model, tmp_path):
    with pytest.raises(WeightsError, match=f"model '{model}': "):
        to_flax(f"--model={model}", "--pretrained=openai", f"--out={tmp_path / 'flax'}")


def test_open_clip_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="pip install"):
        open_clip_package.open_clip_folder()


def test_bfloat16_safetensors_are_converted(hub_folder, tmp_path):
    weights = hub_folder / "open_clip_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    write_safetensors(weights, tensors, "BF16", ml_dtypes.bfloat16)
    to_flax(f"--pretrained={weights}", f"--out={tmp_path / 'flax'}")
    found = Checkpoint.load(tmp_path / "flax")
    assert found.source["converted_to_float32_from"] == {"bfloat16": len(tensors)}
    expected = tensors["visual.proj"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found.params["visual/projection"], expected)
    write_safetensors(weights, tensors, "F8_E4M3", ml_dtypes.float8_e4m3fn)
    with pytest.raises(WeightsError, match=r"found .*\(F8_E4M3\).*not quantized"):
        to_flax(f"--pretrained={weights}", f"--out={tmp_path / 'flax'}")


def write_safetensors(path, tensors, kind: str, dtype) -> None:
    header, data = {}, b""
    for name, array in tensors.items():
        content = array.astype(dtype).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_numbers_that_are_not_finite_are_refused(hub_folder, tmp_path):
    weights, out = hub_folder / "open_clip_model.safetensors", f"--out={tmp_path / 'flax'}"
    tensors = safetensors.numpy.load_file(weights)
    tensors["visual.proj"] = tensors["visual.proj"].astype(np.float64)
    for value, message in ((np.inf, "in visual.proj;"), (1e300, "in float32: .* in visual.proj;")):
        tensors["visual.proj"][1, 1] = value
        safetensors.numpy.save_file(tensors, weights)
        with pytest.raises(WeightsError, match=f"expected finite numbers.*{message}|{message}"):
            to_flax(f"--pretrained={weights}", out)
    assert not (tmp_path / "flax").exists()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("vision_cfg.layers", 10**12, "vision_cfg.layers: expected less than or equal to 1024"),
        ("vision_cfg.layers", "2", "vision_cfg.layers: expected a valid integer"),
        ("vision_cfg.width", 1.5, "vision_cfg.width: expected a valid integer"),
        ("vision_cfg.head_width", 0, "vision_cfg.head_width: expected greater"),
        (
            "vision_cfg.head_width",
            20,
            "vision_cfg: expected .* found width 64 and head_width 20, which make 3 heads",
        ),
        ("vision_cfg.head_width", 65, "found width 64 and head_width 65, which make 0 heads"),
        ("text_cfg.heads", 5, "text_cfg: width .* is not a multiple of the 5 heads"),
        ("vision_cfg.image_size", [8], "vision_cfg.image_size"),
        ("vision_cfg.image_size", 10**9, "vision_cfg.image_size"),
        ("vision_cfg.pool_type", ["tok"], "vision_cfg.pool_type: expected 'tok' or 'avg'"),
        ("vision_cfg.no_ln_pre", "no", "vision_cfg.no_ln_pre: expected a valid boolean"),
        ("vision_cfg.norm_kwargs", 3, "vision_cfg.norm_kwargs: expected an object"),
        ("vision_cfg", [], "vision_cfg: expected an object"),
        ("text_cfg.vocab_size", 10**12, "text_cfg.vocab_size: expected less"),
        ("text_cfg.context_length", 10**9, "text_cfg.context_length: expected less"),
        ("text_cfg.heads", None, "text_cfg.heads: expected a valid integer"),
        ("text_cfg.tokenizer_kwargs", 3, "text_cfg.tokenizer_kwargs: expected an object"),
        ("text_cfg.tokenizer_kwargs", {"clean": ["lower"]}, "text cleaning is .'lower'."),
        ("text_cfg.hf_tokenizer_name", 3, "text_cfg.hf_tokenizer_name: expected a valid string"),
        ("embed_dim", None, "embed_dim: expected a valid integer"),
        ("quick_gelu", "yes", "quick_gelu: expected a valid boolean"),
        ("preprocess.mean", "red", "preprocess_cfg: mean"),
        ("preprocess.mean", [0.1, float("nan"), 1], "preprocess_cfg: mean"),
        ("preprocess.std", 0, "preprocess_cfg: std"),
        ("preprocess.resize_mode", "stretch", "resize_mode: expected .* found 'stretch'"),
        ("preprocess.interpolation", ["random"], "interpolation: expected"),
        ("preprocess.mode", "L", "mode: expected 'RGB', found 'L'"),
        ("preprocess.fill_color", -1, "fill_color: expected greater"),
    ],
)
def test_every_item_of_the_configuration_is_checked(hub_folder, place, value, message):
    path = hub_folder / "open_clip_config.json"
    content = json.loads(path.read_text())
    part = content["preprocess_cfg" if place.startswith("preprocess.") else "model_cfg"]
    *parents, last = place.removeprefix("preprocess.").split(".")
    for key in parents:
        part = part[key]
    part[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message) as caught:
        openclip_to_flax.convert(
            sources.from_file(hub_folder / "open_clip_model.safetensors", model=None)
        )
    assert str(hub_folder) in str(caught.value) or "clean" in place or "kwargs" in place
    assert "choose" in str(caught.value) or "clean" in str(value)
