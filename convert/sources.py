"""Read OpenCLIP's weights from a pretrained tag, a repository of the hub, or a local file.

The architecture, the activation and the preprocessing come from the configuration of the weights;
none of them is assumed. What cannot be found, read or used is a WeightsError.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert import hub, hub_tokenizer, open_clip_package, tokenizer_files, torch_file
from lattec_jax.data.text.clip_bpe import clip_tokenizer
from lattec_jax.data.text.tokenizer import Tokenizer
from lattec_jax.models.config import CLIPConfig
from lattec_jax.models.tensor_files import read_safetensors
from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.safe_read import read_json
from lattec_jax.runtime.validation import STRICT_OPEN, validate

_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
FILE_SUFFIXES = (".safetensors", *_TORCH_SUFFIXES)


@dataclasses.dataclass(frozen=True)
class _HubConfig:
    """`open_clip_config.json`; both parts are validated where they are converted."""

    __pydantic_config__ = STRICT_OPEN
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """OpenCLIP's weights and their configuration."""

    tensors: dict[str, np.ndarray]  # OpenCLIP's names, in their stored type
    model_cfg: dict[str, Any]  # OpenCLIP's
    preprocess_cfg: dict[str, Any]  # OpenCLIP's
    where: str  # what was read, for messages
    description: dict[str, Any]  # for the checkpoint's `source`
    folder: Path | None = None  # of a local file; may contain its tokenizer


def from_tag(model: str, tag: str) -> Source:
    """Read the weights of a pretrained tag, from open_clip's cache or downloaded into it."""
    model_cfg = open_clip_package.built_in_model_cfg(model)
    CLIPConfig.from_open_clip(model_cfg, f"model {model!r}")  # refused before the download
    tag_cfg = open_clip_package.pretrained_cfg(model, tag)
    path = open_clip_package.download(model, tag, tag_cfg)
    return Source(
        tensors=read_tensors(path),
        model_cfg=open_clip_package.with_activation_of(tag_cfg, model_cfg),
        preprocess_cfg=tag_cfg,
        where=f"open_clip's {model} {tag}",
        description={"model": model, "pretrained": tag, "file": path.name},
    )


def from_hub(name: str) -> Source:
    """Read `hf:organization/name` (or `...@revision`) from the hub or its cache."""
    path = hub.fetch(name)
    source = from_file(path, model=None)
    tokenizer = source.model_cfg["text_cfg"].get("hf_tokenizer_name")
    if tokenizer and tokenizer not in hub_tokenizer.NAMES:  # then read from the same commit
        hub.fetch_beside(name, path.parent.name, tokenizer_files.FILES)
    description = {"hub": name.partition(":")[2], "commit": path.parent.name, "file": path.name}
    return dataclasses.replace(source, where=name, description=description)


def from_file(
    path: Path,
    model: str | None,
    preprocess_of: str | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> Source:
    """Read a .safetensors file, or a state dict that torch saved.

    Args:
        path: the file. `open_clip_config.json` in the same folder, as on the Hugging Face hub,
            contains architecture and preprocessing.
        model: open_clip's name of the architecture; required without that file.
        preprocess_of: without that file, the pretrained tag whose preprocessing and activation
            apply to these weights too.
        preprocess: alternatively the values themselves: mean, std, interpolation, resize_mode.
    """
    if not path.exists():
        raise WeightsError(f"no weights file {path}")
    hub_config = _read_hub_config(path.parent / hub.CONFIG_FILE)
    if model is None and not hub_config:
        raise WeightsError(
            f"the architecture of {path} is not known: pass --model=NAME (an open_clip name such "
            f"as ViT-B-32), or put the weights' {hub.CONFIG_FILE} beside the file"
        )
    model_cfg = hub_config.get("model_cfg") or open_clip_package.built_in_model_cfg(str(model))
    if hub_config and model is not None:
        _refuse_other_model(model, model_cfg, path.parent / hub.CONFIG_FILE)
    CLIPConfig.from_open_clip(model_cfg, str(path.parent / hub.CONFIG_FILE if hub_config else path))
    given = {
        hub.CONFIG_FILE: hub_config.get("preprocess_cfg"),
        f"--preprocess-of={preprocess_of}": preprocess_of,
        "--mean --std --interpolation --resize-mode": preprocess,
    }
    ways = [way for way, value in given.items() if value]
    if len(ways) != 1:
        raise WeightsError(
            f"expected the preprocessing of {path} from exactly one source, found "
            f"{' and '.join(ways) or 'none'}. State it in {hub.CONFIG_FILE} beside the file (as "
            "preprocess_cfg), by --preprocess-of=TAG (a tag of --model), or by "
            "--mean=R,G,B --std=R,G,B --interpolation=bicubic --resize-mode=shortest"
        )
    preprocess_cfg = hub_config.get("preprocess_cfg") or dict(preprocess or {})
    if preprocess_of:
        if model is None:
            raise WeightsError("--preprocess-of=TAG needs --model=NAME, the model of the tag")
        preprocess_cfg = open_clip_package.pretrained_cfg(model, preprocess_of)
        model_cfg = open_clip_package.with_activation_of(preprocess_cfg, model_cfg)
    return Source(
        tensors=read_tensors(path),
        model_cfg=model_cfg,
        preprocess_cfg=preprocess_cfg,
        where=str(path),
        description={"model": model, "pretrained": path.name, "preprocess": ways[0]},
        folder=path.parent,
    )


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a weights file, in their stored type."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix not in _TORCH_SUFFIXES:
        raise WeightsError(
            f"{path}: expected a weights file that ends in {', '.join(FILE_SUFFIXES)}"
        )
    return torch_file.read(path)


def tokenizer_for(source: Source) -> Tokenizer:
    text = source.model_cfg["text_cfg"]
    if text.get("hf_tokenizer_name"):
        return hub_tokenizer.read(text, source.folder, source.where)
    settings = dict(text.get("tokenizer_kwargs") or {})
    clean = settings.pop("clean", "lower")
    if settings:
        raise WeightsError(
            f"{source.where}: expected CLIP's tokenizer with no setting except `clean`, found "
            f"tokenizer_kwargs {settings}; choose another model"
        )
    return clip_tokenizer(
        open_clip_package.vocabulary_path(),
        context_length=text.get("context_length", 77),
        clean=clean,
    )


def _read_hub_config(path: Path) -> dict[str, Any]:
    """Read `open_clip_config.json`; {} if there is none."""
    try:
        content = read_json(path, open_clip_package.MAX_CONFIG_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    advice = "download it again, or choose weights of one of open_clip's models"
    validate(_HubConfig, content, str(path), WeightsError, advice)
    return content


def _refuse_other_model(model: str, model_cfg: Mapping[str, Any], path: Path) -> None:
    built_in = open_clip_package.built_in_model_cfg(model)
    named = CLIPConfig.from_open_clip(built_in, f"model {model!r}").to_dict()
    stated = CLIPConfig.from_open_clip(model_cfg, str(path)).to_dict()
    if named != stated:
        differing = [key for key in stated if stated[key] != named[key]]
        raise WeightsError(
            f"--model={model} is not the model of {path} (they differ in {', '.join(differing)}); "
            "leave --model out, or move that file away if it belongs to other weights"
        )
