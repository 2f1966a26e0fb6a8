"""Where OpenCLIP's weights come from: a pretrained tag, a repository of the hub, or a local file.

The architecture, the activation and the preprocessing are those that the weights' own configuration
states. None of them is ever assumed.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from convert import hub, hub_tokenizer, torch_file
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.clip_bpe import clip_tokenizer
from lattec_jax.data.text.tokenizer import Tokenizer
from lattec_jax.models.config import CLIPConfig
from lattec_jax.models.tensor_files import read_safetensors
from lattec_jax.runtime.config import did_you_mean
from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.safe_read import read_json
from lattec_jax.runtime.validation import STRICT_OPEN, validate

HUB_CONFIG = hub.CONFIG_FILE
_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_FILE_SUFFIXES = (".safetensors", *_TORCH_SUFFIXES)
MAX_CONFIG_BYTES = 2**24
_INSTALL = "pip install -e '.[convert]'"


@dataclasses.dataclass(frozen=True)
class _HubConfig:
    """`open_clip_config.json`; both are declared where they are converted."""

    __pydantic_config__ = STRICT_OPEN
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """OpenCLIP's weights and what their configuration says."""

    tensors: dict[str, np.ndarray]  # OpenCLIP's names, in their stored type
    model_cfg: dict[str, Any]  # OpenCLIP's
    preprocess_cfg: dict[str, Any]  # OpenCLIP's
    where: str  # what was read, for messages
    description: dict[str, Any]  # for the checkpoint's `source`
    folder: Path | None = None  # of a local file: a tokenizer may lie beside it


def from_tag(model: str, tag: str) -> Source:
    """Read the weights of a pretrained tag, which open_clip downloads or has downloaded.

    Raises:
        WeightsError: no such model or tag, open_clip is missing, or the download failed.
    """
    model_cfg = built_in_model_cfg(model)
    readable_architecture(model_cfg, f"model {model!r}")
    tag_cfg = _tag_cfg(model, tag)
    path = _download(model, tag, tag_cfg)
    return Source(
        tensors=read_tensors(path),
        model_cfg=_with_activation_of(tag_cfg, model_cfg),
        preprocess_cfg=tag_cfg,
        where=f"open_clip's {model} {tag}",
        description={"model": model, "pretrained": tag, "file": path.name},
    )


def from_hub(name: str) -> Source:
    """Read `hf:organization/name` (or `...@revision`) from the hub or its cache.

    Raises:
        WeightsError: it cannot be had, or is not a plain ViT CLIP of open_clip.
    """
    path = hub.fetch(name)
    source = from_file(path, model=None)
    tokenizer = source.model_cfg["text_cfg"].get("hf_tokenizer_name")
    if tokenizer and tokenizer not in hub_tokenizer.NAMES:  # then it is read from the same commit
        hub.fetch_beside(name, path.parent.name, hub_tokenizer.FILES)
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
            states architecture and preprocessing.
        model: open_clip's name of the architecture; needed where that file is missing.
        preprocess_of: where that file is missing, the pretrained tag whose preprocessing and
            activation hold for these weights too.
        preprocess: or the values themselves: mean, std, interpolation, resize_mode.

    Raises:
        WeightsError: the file cannot be read, or its configuration is not known.
    """
    if not path.exists():
        raise WeightsError(f"no weights file {path}")
    hub_config = _read_hub_config(path.parent / HUB_CONFIG)
    if model is None and not hub_config:
        raise WeightsError(
            f"the architecture of {path} is not known: pass --model=NAME (an open_clip name such "
            f"as ViT-B-32), or put the weights' {HUB_CONFIG} beside the file"
        )
    model_cfg = hub_config.get("model_cfg") or built_in_model_cfg(str(model))
    if hub_config and model is not None:
        _refuse_other_model(model, model_cfg, path.parent / HUB_CONFIG)
    readable_architecture(model_cfg, str(path.parent / HUB_CONFIG if hub_config else path))
    given = {
        HUB_CONFIG: hub_config.get("preprocess_cfg"),
        f"--preprocess-of={preprocess_of}": preprocess_of,
        "--mean --std --interpolation --resize-mode": preprocess,
    }
    ways = [way for way, value in given.items() if value]
    if len(ways) != 1:
        raise WeightsError(
            f"expected the preprocessing of {path} from one place, found "
            f"{' and '.join(ways) or 'none'}. It comes either from {HUB_CONFIG} beside the file "
            "(with a preprocess_cfg), or from --preprocess-of=TAG (a tag of --model), or "
            "from --mean=R,G,B --std=R,G,B --interpolation=bicubic --resize-mode=shortest"
        )
    preprocess_cfg = hub_config.get("preprocess_cfg") or dict(preprocess or {})
    if preprocess_of:
        if model is None:
            raise WeightsError("--preprocess-of=TAG needs --model=NAME, the model of the tag")
        preprocess_cfg = _tag_cfg(model, preprocess_of)
        model_cfg = _with_activation_of(preprocess_cfg, model_cfg)
    return Source(
        tensors=read_tensors(path),
        model_cfg=model_cfg,
        preprocess_cfg=preprocess_cfg,
        where=str(path),
        description={"model": model, "pretrained": path.name, "preprocess": ways[0]},
        folder=path.parent,
    )


def is_file_name(pretrained: str) -> bool:
    """Whether `--pretrained` names a file and not a tag."""
    return pretrained.endswith(_FILE_SUFFIXES) or Path(pretrained).is_file()


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a weights file, in their stored type.

    Raises:
        WeightsError: the file is damaged, a TorchScript archive, or of another kind.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix not in _TORCH_SUFFIXES:
        raise WeightsError(
            f"{path}: expected a weights file that ends in {', '.join(_FILE_SUFFIXES)}"
        )
    return torch_file.read(path)


def stored_types(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many tensors are stored in which type."""
    return dict(collections.Counter(array.dtype.name for array in tensors.values()))


def open_clip_folder() -> Path:
    """The folder of the installed open_clip package, found without importing it.

    Raises:
        WeightsError: it is not installed.
    """
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            "conversion reads the architectures and CLIP's vocabulary from the open_clip package, "
            f"which is not installed: {_INSTALL}"
        )
    return Path(spec.submodule_search_locations[0])


def built_in_models() -> list[str]:
    """Names of all architectures that open_clip knows, plain ViT or not."""
    return sorted(path.stem for path in (open_clip_folder() / "model_configs").glob("*.json"))


def built_in_model_cfg(model: str) -> dict[str, Any]:
    """open_clip's own configuration of the architecture `model`.

    Raises:
        WeightsError: open_clip has no such model.
    """
    folder, names = open_clip_folder() / "model_configs", built_in_models()
    if model not in names:
        raise WeightsError(
            f"open_clip has no model {model!r}. {did_you_mean(model, names)} "
            f"(names are those of the files in {folder})"
        )
    return read_json(folder / f"{model}.json", MAX_CONFIG_BYTES)


def readable_architecture(model_cfg: Mapping[str, Any], where: str) -> CLIPConfig:
    """The architecture, where this project has it.

    Raises:
        WeightsError: it does not, or the configuration is incomplete.
    """
    return CLIPConfig.from_open_clip(model_cfg, where)


def tokenizer_for(source: Source) -> Tokenizer:
    """The tokenizer of the weights.

    Raises:
        WeightsError: it cannot be had, or has settings that are not read.
    """
    text = source.model_cfg["text_cfg"]
    if text.get("hf_tokenizer_name"):
        return hub_tokenizer.read(text, source.folder, source.where)
    settings = dict(text.get("tokenizer_kwargs") or {})
    clean = settings.pop("clean", "lower")
    if settings:
        raise WeightsError(
            f"{source.where}: expected CLIP's tokenizer with no other setting than `clean`, found "
            f"tokenizer_kwargs {settings}; choose another model"
        )
    return clip_tokenizer(
        open_clip_folder() / "bpe_simple_vocab_16e6.txt.gz",
        context_length=text.get("context_length", 77),
        clean=clean,
    )


def preprocess_for(source: Source) -> Preprocess:
    """The preprocessing that the weights' configuration states, as open_clip reads it."""
    image_size = source.model_cfg["vision_cfg"]["image_size"]
    where = f"{source.where}: preprocess_cfg"
    return Preprocess.from_open_clip(source.preprocess_cfg, image_size, where)


def tags_of(model: str) -> list[str]:
    """open_clip's pretrained tags of a model.

    Raises:
        WeightsError: open_clip cannot be imported.
    """
    return list(_import_open_clip().list_pretrained_tags_by_model(model))


def _tag_cfg(model: str, tag: str) -> dict[str, Any]:
    """What open_clip knows about a pretrained tag: where it is, preprocessing, activation."""
    open_clip = _import_open_clip()
    found = open_clip.get_pretrained_cfg(model, tag)
    if not found:
        tags = tags_of(model)
        raise WeightsError(
            f"open_clip has no pretrained tag {tag!r} of {model}. {did_you_mean(tag, tags)} "
            f"Tags of {model}: {', '.join(tags) or 'none'}; a file name ends in "
            f"{', '.join(_FILE_SUFFIXES)}"
        )
    return dict(found)


def _with_activation_of(tag_cfg: Mapping[str, Any], model_cfg: dict[str, Any]) -> dict[str, Any]:
    """The architecture with the activation that the tag's weights were trained with.

    open_clip only warns where the two differ, and computes with the architecture's: `ViT-B-32` with
    the tag `openai` gives wrong features there, and `ViT-B-32-quickgelu` the right ones.
    """
    return {**model_cfg, "quick_gelu": tag_cfg.get("quick_gelu", False)}


def _import_open_clip() -> ModuleType:
    open_clip_folder()
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # torchvision's operators raise RuntimeError
        raise WeightsError(
            f"a pretrained tag needs open_clip, which cannot be imported: {error}. Install a "
            f"matching pair of torch and torchvision ({_INSTALL}), or convert a .safetensors file, "
            "which needs neither"
        ) from error
    return open_clip


def _download(model: str, tag: str, tag_cfg: dict[str, Any]) -> Path:
    open_clip = _import_open_clip()
    try:
        return Path(open_clip.download_pretrained(tag_cfg))
    except (OSError, RuntimeError) as error:
        repository = tag_cfg.get("hf_hub", "").strip("/")
        if repository:
            ways = hub.ways_without_network(repository)
        else:
            ways = f"Without a network here, fetch {tag_cfg.get('url')} elsewhere and pass the file"
        raise WeightsError(
            f"the weights of {model} {tag} could not be downloaded: {str(error).rstrip('. ')}. "
            f"{ways}"
        ) from error


def _read_hub_config(path: Path) -> dict[str, Any]:
    """`open_clip_config.json`, or nothing where there is none."""
    try:
        content = read_json(path, MAX_CONFIG_BYTES)
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
    named = readable_architecture(built_in_model_cfg(model), f"model {model!r}").to_dict()
    stated = readable_architecture(model_cfg, str(path)).to_dict()
    if named != stated:
        differing = [key for key in stated if stated[key] != named[key]]
        raise WeightsError(
            f"--model={model} is not the model of {path} (they differ in {', '.join(differing)}); "
            "leave --model out, or move that file away if it belongs to other weights"
        )
