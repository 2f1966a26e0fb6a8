"""What the Hugging Face hub holds: OpenCLIP's weights, and the tokenizers that some models name.

Files come from the hub's cache where they are, and are downloaded into it where they are not. Of
weights only `.safetensors` and its configuration are needed, and torch is not; tokenizers are read
by transformers, and only here: the checkpoint directory keeps the file of the `tokenizers` library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from lattec_jax.data.tokenizer import HubTokenizer
from lattec_jax.errors import WeightsError

PREFIXES = ("hf:", "hf-hub:")  # the second is open_clip's
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# What a model's `tokenizer_kwargs` may set, as open_clip's models do, and the default. Nothing else
# reaches transformers: `trust_remote_code` would run a Python file that comes with the weights.
_TOKENIZER_SETTINGS = {"clean": "whitespace", "strip_sep_token": False}
_NO_WEIGHTS = "--exclude '*.bin' '*.safetensors' '*.h5' '*.msgpack' '*.ot' '*.onnx'"


def is_hub_name(weights: str) -> bool:
    """Whether `weights` is written `hf:organisation/name`."""
    return weights.startswith(PREFIXES)


def fetch(weights: str) -> Path:
    """The weights file of `hf:organisation/name` (or `...@revision`), its configuration beside it.

    Raises:
        WeightsError: it is not in the cache and cannot be downloaded, or is no model of open_clip.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = weights.partition(":")[2].partition("@")
    try:
        config = _download(repository, CONFIG_FILE, revision or None)
    except LocalEntryNotFoundError as error:
        raise _not_reachable(repository, error) from error
    except EntryNotFoundError as error:
        raise WeightsError(
            f"the hub's {repository} has no {CONFIG_FILE}, so it is not a model of open_clip. "
            "Expected a repository with that file and open_clip_model.safetensors, such as "
            "hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K; OpenAI's weights are the tag "
            "ViT-B-32-quickgelu:openai"
        ) from error
    unreachable = None
    for name in WEIGHTS_FILES:
        try:
            # Of the same commit as the configuration, whatever happens to the branch meanwhile.
            return _download(repository, name, config.parent.name)
        except LocalEntryNotFoundError as error:
            unreachable = error
        except EntryNotFoundError:
            continue
    if unreachable is not None:
        raise _not_reachable(repository, unreachable) from unreachable
    raise WeightsError(
        f"the hub's {repository} has neither {' nor '.join(WEIGHTS_FILES)}; choose another "
        "repository, or download a weights file of it and pass that"
    )


def _download(repository: str, name: str, revision: str | None) -> Path:
    """One file, from the cache or the hub; EntryNotFoundError where it is not there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except HFValidationError as error:
        raise WeightsError(
            f"expected hf:organisation/name, found {repository!r}: {_first_line(error)}"
        ) from error
    except GatedRepoError as error:
        raise WeightsError(
            f"the hub's {repository} is gated: accept its terms at "
            f"https://huggingface.co/{repository} and log in with hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"the hub has no repository {repository}, or it is private (then log in with hf auth "
            "login); check the name, for example hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"the hub's {repository} has no revision {revision!r}") from error
    except (LocalEntryNotFoundError, RemoteEntryNotFoundError):
        raise
    except (HTTPError, OSError) as error:  # other answers, a broken connection, a full disk
        raise WeightsError(f"{name} of the hub's {repository}: {_first_line(error)}") from error


def ways_without_network(repository: str) -> str:
    """How to get weights of the hub onto a machine that cannot reach it."""
    files = f"{CONFIG_FILE} {WEIGHTS_FILES[0]}"
    return (
        "Without a network here there are three ways, each on another machine: "
        f"(1) hf download {repository} {files}, copy its cache (~/.cache/huggingface) and set "
        f"HF_HOME to the copy; (2) the same with --local-dir=DIR, copy DIR and pass "
        f"DIR/{WEIGHTS_FILES[0]}; (3) python -m convert.openclip_to_flax "
        f"--pretrained=hf:{repository} --out=DIR, copy DIR and pass it"
    )


def _not_reachable(repository: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"the weights hf:{repository} are not in the hub's cache and cannot be downloaded: "
        f"{_first_line(error)} {ways_without_network(repository)}"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def tokenizer(text_cfg: Mapping[str, Any], folder: Path | None, where: str) -> HubTokenizer:
    """The tokenizer that `text_cfg` names, as open_clip's `HFTokenizer` uses it.

    Args:
        text_cfg: open_clip's, with `hf_tokenizer_name`.
        folder: of the weights file: tokenizer files that lie in it come first, as in open_clip.
        where: of the configuration, for messages.

    Raises:
        WeightsError: transformers is missing, the tokenizer cannot be found, or it is of a kind
            that is not read.
    """
    name = str(text_cfg["hf_tokenizer_name"])
    settings = _tokenizer_settings(text_cfg, where)
    found = _load(name, folder, where)
    sides = {found.padding_side, found.truncation_side}
    if not found.is_fast or found.pad_token_id is None or sides != {"right"}:
        raise WeightsError(
            f"{where}: expected the tokenizer {name} to be a fast one that pads and cuts on the "
            f"right, found {type(found).__name__} with sides {sorted(sides)} and padding token "
            f"{found.pad_token!r}; choose another model"
        )
    return HubTokenizer(
        _without_unknown_tokens(found.backend_tokenizer, text_cfg.get("vocab_size", 49408)),
        context_length=text_cfg.get("context_length", 77),
        pad_id=found.pad_token_id,
        clean=settings["clean"],
        hf_name=name,
        zeroed_id=found.sep_token_id if settings["strip_sep_token"] else None,
    )


def _tokenizer_settings(text_cfg: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The known settings of the tokenizer with their defaults.

    Raises:
        WeightsError: there are others, or one has another type.
    """
    stated = dict(text_cfg.get("tokenizer_kwargs") or {})
    if text_cfg.get("tokenizer_mode"):
        stated["tokenizer_mode"] = text_cfg["tokenizer_mode"]
    for key, value in stated.items():
        if key not in _TOKENIZER_SETTINGS or type(value) is not type(_TOKENIZER_SETTINGS[key]):
            raise WeightsError(
                f"{where}: the tokenizer's setting {key}={value!r} is not read; expected "
                f"{' and '.join(_TOKENIZER_SETTINGS)} at most, a text and a boolean. Remove it, or "
                "choose another model"
            )
    return _TOKENIZER_SETTINGS | stated


def _load(name: str, folder: Path | None, where: str) -> Any:
    """transformers' tokenizer."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise WeightsError(
            f"{where} has the tokenizer {name}, which transformers reads: "
            "pip install -e '.[convert]'"
        ) from error
    beside = folder is not None and (folder / "tokenizer_config.json").is_file()
    try:
        return AutoTokenizer.from_pretrained(
            str(folder) if beside else name, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise WeightsError(
            f"{where}: the tokenizer {name} cannot be read "
            f"{f'from {folder}' if beside else 'from the hub or its cache'}: {_first_line(error)} "
            f"Without a network: on another machine hf download {name} {_NO_WEIGHTS}, then copy "
            "its cache and set HF_HOME, or put the files beside the weights file"
        ) from error


def _without_unknown_tokens(backend: tokenizers.Tokenizer, known: int) -> tokenizers.Tokenizer:
    """The tokenizer without the special tokens that the model has no embedding for.

    T5's tokenizers may bring a hundred `<extra_id_N>` more than the model knows. Written in a text,
    they would make open_clip fail; here they are read as the characters that they are.
    """
    content = json.loads(backend.to_str())
    added, model = content["added_tokens"], content["model"]
    unknown = {token["content"] for token in added if token["id"] >= known}
    if not unknown:
        return backend
    content["added_tokens"] = [token for token in added if token["id"] < known]
    if model["type"] == "Unigram" and unknown.issuperset(p for p, _ in model["vocab"][known:]):
        model["vocab"] = model["vocab"][:known]
    return tokenizers.Tokenizer.from_str(json.dumps(content))
