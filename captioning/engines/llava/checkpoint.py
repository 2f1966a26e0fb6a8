"""Checks of a LLaVA-NeXT checkpoint: what transformers would otherwise run, fetch or make up.

Each raises EngineError.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from captioning.engines.llava.chat_template import check_chat_template
from lattec_jax.runtime.errors import EngineError, short_repr
from lattec_jax.runtime.safe_read import read_json

# What transformers raises for files that it cannot read; it does not check them itself.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)
_MAX_INDEX_BYTES = 2**24


def check_path(name: str) -> None:
    """Refuse a `config.descriptions.llava.model` that is a path to no directory."""
    if name.startswith(("/", "./", "../", "~")) and not os.path.isdir(name):
        raise EngineError(f"config.descriptions.llava.model: there is no directory {name}")


def refuse_adapter(name: str, revision: str | None) -> None:
    """Refuse a checkpoint with an adapter, which may name another repository."""
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        # transformers itself looks for it this way if the package peft is installed.
        found = find_adapter_config_file(name, revision=revision)
    except UNREADABLE as error:
        raise unloadable(name, error) from error
    if found is not None:
        raise EngineError(
            f"config.descriptions.llava.model: expected a full checkpoint, found an adapter "
            f"(adapter_config.json) in {name}; merge it into its model, or choose another "
            "checkpoint"
        )


def read_configuration(name: str, revision: str | None) -> Any:
    """Return the configuration of an unquantized LLaVA-NeXT."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            name, trust_remote_code=False, revision=revision
        )
    except UNREADABLE as error:
        raise unloadable(name, error) from error
    if config.model_type != "llava_next":
        raise EngineError(
            f"config.descriptions.llava.model: expected a LLaVA-NeXT checkpoint (model_type "
            f"llava_next), found {config.model_type} in {name}; serve other models to the engine "
            "openai"
        )
    for part in (config, config.text_config, config.vision_config):
        attention = getattr(part, "_attn_implementation", None)
        # Any other name may be a repository of the hub, whose code transformers would run.
        if attention not in (None, "eager", "sdpa"):
            raise EngineError(
                f"config.descriptions.llava.model: the configuration of {name} asks for the "
                f"attention {short_repr(attention)}; expected eager, sdpa or nothing. Remove it"
            )
    if getattr(config, "quantization_config", None):
        raise EngineError(
            f"config.descriptions.llava.model: expected unquantized weights, which "
            f"config.descriptions.llava.precision then quantizes; {name} is quantized already"
        )
    return config


def check_weights_index(directory: Path) -> None:
    """Refuse a local checkpoint whose index names files outside of its directory."""
    path = directory / "model.safetensors.index.json"
    if not path.exists():
        return
    try:
        index = read_json(path, _MAX_INDEX_BYTES)
        names = set(index["weight_map"].values())
        outside = [name for name in names if os.path.basename(name) != name]
    except UNREADABLE as error:
        raise EngineError(
            f"config.descriptions.llava.model: {path} is not an index of weights ({error}); "
            "download the checkpoint again"
        ) from error
    if outside:
        raise EngineError(
            f"config.descriptions.llava.model: expected {path} to name files of its folder, found "
            f"{short_repr(outside)}; choose another checkpoint"
        )


def check_loaded(name: str, report: dict[str, Any], processor: Any) -> None:
    """Refuse weights that transformers initialized randomly, and a missing or unsafe template.

    `report` is the `output_loading_info` of `from_pretrained`.
    """
    missing = sorted(report["missing_keys"])
    mismatched = sorted(key for key, *_ in report["mismatched_keys"])
    if missing or mismatched:
        raise EngineError(
            f"{name} does not fit its config.json: {len(missing)} weights are missing and "
            f"{len(mismatched)} have another shape, the first {[*missing, *mismatched][0]}; "
            "download it again"
        )
    if processor.chat_template is None:
        raise EngineError(
            f"{name} has no chat template (chat_template.jinja or chat_template.json), so its "
            "prompt format is unknown; take another revision, or a checkpoint such as "
            "llava-hf/llava-v1.6-mistral-7b-hf"
        )
    check_chat_template(processor.chat_template, f"config.descriptions.llava.model: {name}")


def unloadable(name: str, error: Exception) -> EngineError:
    """Return the error for a checkpoint that cannot be read or downloaded."""
    reason = " ".join(str(error).split())[:300]
    return EngineError(
        f"config.descriptions.llava.model: {name!r} cannot be loaded ({reason}). Name a directory, "
        "or a checkpoint of the hub such as llava-hf/llava-v1.6-mistral-7b-hf; without a network, "
        f"fetch it on another machine with: hf download {name}, and copy its folder or the hub's "
        "cache (HF_HOME)"
    )
