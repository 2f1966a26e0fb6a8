"""What the installed open_clip package knows: architectures, pretrained tags, CLIP's vocabulary.

What it does not know, or cannot import or download, is a WeightsError.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from convert import hub
from lattec_jax.runtime.config import did_you_mean
from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.extras import install_command
from lattec_jax.runtime.safe_read import read_json

MAX_CONFIG_BYTES = 2**24


def open_clip_folder() -> Path:
    """Return the folder of the open_clip package, without importing it."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            "conversion reads the architectures and CLIP's vocabulary from the open_clip package, "
            f"which is not installed: {install_command('convert')}"
        )
    return Path(spec.submodule_search_locations[0])


def vocabulary_path() -> Path:
    """Return the file of CLIP's byte-pair vocabulary."""
    return open_clip_folder() / "bpe_simple_vocab_16e6.txt.gz"


def built_in_models() -> list[str]:
    """Return the names of all architectures of open_clip, plain ViT or not."""
    return sorted(path.stem for path in (open_clip_folder() / "model_configs").glob("*.json"))


def built_in_model_cfg(model: str) -> dict[str, Any]:
    """Return open_clip's configuration of the architecture `model`."""
    folder, names = open_clip_folder() / "model_configs", built_in_models()
    if model not in names:
        raise WeightsError(
            f"open_clip has no model {model!r}. {did_you_mean(model, names)} "
            f"(names are those of the files in {folder})"
        )
    return read_json(folder / f"{model}.json", MAX_CONFIG_BYTES)


def pretrained_tags(model: str) -> list[str]:
    """Return open_clip's pretrained tags of a model."""
    return list(_import_open_clip().list_pretrained_tags_by_model(model))


def pretrained_cfg(model: str, tag: str) -> dict[str, Any]:
    """Return open_clip's entry of a pretrained tag: its file, preprocessing and activation."""
    found = _import_open_clip().get_pretrained_cfg(model, tag)
    if not found:
        tags = pretrained_tags(model)
        raise WeightsError(
            f"open_clip has no pretrained tag {tag!r} of {model}. {did_you_mean(tag, tags)} "
            f"Tags of {model}: {', '.join(tags) or 'none'}; a file name ends in "
            ".safetensors, .pt, .pth or .bin"
        )
    return dict(found)


def with_activation_of(tag_cfg: Mapping[str, Any], model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture with the activation that the tag's weights were trained with.

    If the two differ, open_clip only warns and computes with the architecture's activation:
    `ViT-B-32` with the tag `openai` gives wrong features, and `ViT-B-32-quickgelu` correct ones.
    """
    return {**model_cfg, "quick_gelu": tag_cfg.get("quick_gelu", False)}


def download(model: str, tag: str, tag_cfg: dict[str, Any]) -> Path:
    """Return the weights file of a tag, from open_clip's cache or downloaded into it."""
    open_clip = _import_open_clip()
    try:
        return Path(open_clip.download_pretrained(tag_cfg))
    except (OSError, RuntimeError) as error:
        url = tag_cfg.get("url")
        ways = f"Without a network here, fetch {url} on another machine and pass the file"
        if repository := tag_cfg.get("hf_hub", "").strip("/"):
            ways = hub.ways_without_network(repository)
        raise WeightsError(
            f"the weights of {model} {tag} could not be downloaded: {str(error).rstrip('. ')}. "
            f"{ways}"
        ) from error


def _import_open_clip() -> ModuleType:
    open_clip_folder()
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # torchvision's operators raise RuntimeError
        raise WeightsError(
            f"a pretrained tag needs open_clip, which cannot be imported: {error}. Install a "
            f"matching pair of torch and torchvision ({install_command('convert')}), or convert a "
            ".safetensors file, which needs neither"
        ) from error
    return open_clip
