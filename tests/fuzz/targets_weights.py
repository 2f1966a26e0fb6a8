"""Fuzz targets: small valid files of the formats of weights."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import Regex, models, pre_tokenizers, processors

from convert import hub, hub_tokenizer, names, openclip_to_flax, sources
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.tokenizer import HubTokenizer, Tokenizer
from lattec_jax.data.text.word_level import word_tokenizer
from lattec_jax.models.checkpoint import Checkpoint, expected_shapes
from lattec_jax.models.config import CLIPConfig
from tests.data import hub_tokenizers
from tests.fuzz.mutations import Target

WORDS = ["one", "two", "three"]
CORPUS = ["a photo of a cat", "a drawing of a dog"]
MODEL_CFG = {
    "embed_dim": 4,
    "quick_gelu": False,
    "vision_cfg": {
        "layers": 1,
        "width": 8,
        "head_width": 4,
        "patch_size": 4,
        "image_size": 8,
        "pool_type": "tok",
    },
    "text_cfg": {
        "layers": 1,
        "width": 4,
        "heads": 2,
        "context_length": 6,
        "vocab_size": 49408,
        "norm_kwargs": {"eps": 1e-6},
    },
}
PREPROCESS_CFG = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "resize_mode": "squash",
    "mode": "RGB",
}


def targets(tmp_path: Path) -> dict[str, Target]:
    """The formats by name; those that need packages that are not installed are omitted."""
    config = CLIPConfig.from_open_clip({**MODEL_CFG, "text_cfg": _text(7)})
    directory, bpe = tmp_path / "checkpoint", tmp_path / "bpe"
    _checkpoint(config, word_tokenizer(WORDS, context_length=6)).save(directory)
    large = CLIPConfig.from_open_clip({**MODEL_CFG, "text_cfg": _text(64)})
    _checkpoint(large, _bpe()).save(bpe)
    found = {
        "checkpoint-config": _among(directory, "config.json", _load),
        "checkpoint-weights": _among(directory, "model.safetensors", _load),
        "checkpoint-tokenizer": _among(directory, "tokenizer.json", _load),
        "checkpoint-bpe": _among(bpe, "tokenizer.json", _load),
    }
    if importlib.util.find_spec("open_clip"):  # CLIP's vocabulary
        folder = _source(tmp_path / "source")
        found["open-clip-config"] = _among(folder, hub.CONFIG_FILE, _convert)
        found["safetensors"] = _among(folder, "open_clip_model.safetensors", _convert)
        if importlib.util.find_spec("torch"):
            found["pt"] = _torch_target(tmp_path / "torch")
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        found |= _hub_targets(tmp_path)
    return found


def _bpe() -> Tokenizer:
    """A byte-pair tokenizer with the same components as CLIP's."""
    letters = [chr(code) for code in range(ord("a"), ord("u"))]
    words = ["one</w>", "on", "<s>", "</s>"]
    vocabulary = {n: i for i, n in enumerate([*letters, *(c + "</w>" for c in letters), *words])}
    merges = [("o", "n"), ("on", "e</w>")]
    model = models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>")
    backend = tokenizers.Tokenizer(model)
    split = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]"), "removed", invert=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    ends = [(name, vocabulary[name]) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    return Tokenizer(backend, context_length=6, pad_id=0, clean="lower")


def _torch_target(folder: Path) -> Target:
    import torch

    _source(folder)
    tensors = safetensors.numpy.load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, buffer)
    (folder / "model.pt").write_bytes(buffer.getvalue())
    return _among(folder, "model.pt", _convert)


def _hub_targets(tmp_path: Path) -> dict[str, Target]:
    made = hub_tokenizers.make("bert", tmp_path / "beside", CORPUS, 60)
    tokenizer = hub_tokenizer.read(_text(64) | {"hf_tokenizer_name": "bert"}, made, "the target")
    assert isinstance(tokenizer, HubTokenizer)
    config = CLIPConfig.from_open_clip({**MODEL_CFG, "text_cfg": _text(64)})
    directory = tmp_path / "hub-checkpoint"
    _checkpoint(config, tokenizer).save(directory)
    return {
        "hub-checkpoint-config": _among(directory, "config.json", _load),
        "hub-checkpoint-tokenizer": _among(directory, "tokenizer.json", _load),
        "tokenizer-config": _among(made, "tokenizer_config.json", _read_tokenizer),
        "tokenizer": _among(made, "tokenizer.json", _read_tokenizer),
    }


def _text(vocab_size: int) -> dict:
    return {**MODEL_CFG["text_cfg"], "vocab_size": vocab_size}


def _checkpoint(config: CLIPConfig, tokenizer: Tokenizer) -> Checkpoint:
    rng = np.random.default_rng(0)
    return Checkpoint(
        config=config,
        params={n: rng.random(s, np.float32) for n, s in expected_shapes(config).items()},
        tokenizer=tokenizer,
        preprocess=Preprocess((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        source={"model": "tiny"},
    )


def _source(folder: Path) -> Path:
    """OpenCLIP's weights and their configuration."""
    folder.mkdir(parents=True)
    content = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    (folder / hub.CONFIG_FILE).write_text(json.dumps(content), encoding="utf-8")
    config = CLIPConfig.from_open_clip(MODEL_CFG)
    rng = np.random.default_rng(0)
    params = {n: rng.random(s, np.float32) for n, s in expected_shapes(config).items()}
    tensors = names.to_open_clip(params, config)
    safetensors.numpy.save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def _among(folder: Path, name: str, read: Callable[[Path], object]) -> Target:
    """A file of a folder; the reader replaces this file."""

    valid = (folder / name).read_bytes()

    def reader(path: Path) -> None:
        shutil.copyfile(path, folder / name)
        try:
            read(folder / name)
        finally:  # the other files of the folder are targets too
            (folder / name).write_bytes(valid)

    return Target(valid, Path(name).suffix, reader)


def _load(path: Path) -> None:
    checkpoint = Checkpoint.load(path.parent)
    checkpoint.tokenizer(["one two", "A photo, of [CLS] 3 ünïts"])


def _convert(path: Path) -> None:
    (weights,) = [*path.parent.glob("*.safetensors"), *path.parent.glob("*.pt")]
    openclip_to_flax.convert(sources.from_file(weights, model=None))


def _read_tokenizer(path: Path) -> None:
    config = _text(64) | {"hf_tokenizer_name": "bert"}
    hub_tokenizer.read(config, path.parent, "the target")(["one two", "A photo, of [CLS] 3 ünïts"])
