"""Read the tokenizers of the Hugging Face hub that some models of OpenCLIP name.

transformers is needed here only: the checkpoint directory stores the file of the `tokenizers`
library. A tokenizer is read from the folder of the weights (`tokenizer_files.py`), or it is one of
`NAMES`; weights cannot name any other repository, path or address.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from convert.hub import first_line
from convert.tokenizer_files import CONFIG, copy_tokenizer
from lattec_jax.data.text.tokenizer import HubTokenizer, largest_token_id
from lattec_jax.data.text.tokenizer_rules import check_rules
from lattec_jax.runtime.errors import WeightsError, short_repr
from lattec_jax.runtime.extras import install_command
from lattec_jax.runtime.rust_errors import rust_errors
from lattec_jax.runtime.text import escape_unprintable, truncate

# All tokenizers named by open_clip's models, in `open_clip/model_configs`.
NAMES = (
    "bert-base-uncased",
    "facebook/nllb-200-distilled-1.3B",
    "facebook/nllb-200-distilled-600M",
    "facebook/xlm-v-base",
    "google/mt5-base",
    "google/mt5-xl",
    "roberta-base",
    "timm/ViT-B-16-SigLIP",
    "timm/ViT-B-16-SigLIP-i18n-256",
    "timm/ViT-B-16-SigLIP2",
    "timm/ViT-B-16-SigLIP2-256",
    "timm/ViT-B-16-SigLIP2-384",
    "timm/ViT-B-16-SigLIP2-512",
    "timm/ViT-B-32-SigLIP2-256",
    "timm/ViT-L-16-SigLIP2-256",
    "timm/ViT-L-16-SigLIP2-384",
    "timm/ViT-L-16-SigLIP2-512",
    "timm/ViT-SO400M-14-SigLIP2",
    "timm/ViT-SO400M-14-SigLIP2-378",
    "timm/ViT-SO400M-16-SigLIP2-256",
    "timm/ViT-SO400M-16-SigLIP2-384",
    "timm/ViT-SO400M-16-SigLIP2-512",
    "timm/ViT-gopt-16-SigLIP2-256",
    "timm/ViT-gopt-16-SigLIP2-384",
    "xlm-roberta-base",
    "xlm-roberta-large",
)
# The supported keys of a model's `tokenizer_kwargs` and their defaults; open_clip's models use no
# others. Nothing else reaches transformers: `trust_remote_code` would run code from the weights.
_KWARGS = {"clean": "whitespace", "strip_sep_token": False}
_NO_WEIGHTS = "--exclude '*.bin' '*.safetensors' '*.h5' '*.msgpack' '*.ot' '*.onnx'"

_NAME = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)


def read(text_cfg: Mapping[str, Any], folder: Path | None, where: str) -> HubTokenizer:
    """Return the tokenizer that `text_cfg` names, as open_clip's `HFTokenizer` uses it.

    Args:
        folder: of the weights file; its tokenizer files take precedence, as in open_clip.
        where: the configuration, for messages.
    """
    name = text_cfg["hf_tokenizer_name"]
    if not isinstance(name, str) or ".." in name or not _NAME.fullmatch(name):
        raise WeightsError(
            f"{where}: hf_tokenizer_name: expected a name of the hub, organization/name, found "
            f"{short_repr(name)}"
        )
    settings = _kwargs(text_cfg, where)
    found = _load(name, folder, where)
    sides = {found.padding_side, found.truncation_side}
    if not found.is_fast or found.pad_token_id is None or sides != {"right"}:
        raise WeightsError(
            f"{where}: expected the tokenizer {name} to be a fast one that pads and cuts on the "
            f"right, found {type(found).__name__} with sides {sorted(sides)} and padding token "
            f"{found.pad_token!r}; choose another model"
        )
    with rust_errors(f"{where}: the tokenizer"):
        check_rules(found.backend_tokenizer.to_str(), f"{where}: the tokenizer {name}")
        largest_token_id(found.backend_tokenizer)
    return HubTokenizer(
        _without_unknown_tokens(found.backend_tokenizer, text_cfg.get("vocab_size", 49408)),
        context_length=text_cfg.get("context_length", 77),
        pad_id=found.pad_token_id,
        clean=settings["clean"],
        hf_name=name,
        zeroed_id=found.sep_token_id if settings["strip_sep_token"] else None,
    )


def _kwargs(text_cfg: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the supported settings of the tokenizer, with defaults; refuse others."""
    stated = dict(text_cfg.get("tokenizer_kwargs") or {})
    if text_cfg.get("tokenizer_mode"):
        stated["tokenizer_mode"] = text_cfg["tokenizer_mode"]
    for key, value in stated.items():
        if key not in _KWARGS or type(value) is not type(_KWARGS[key]):
            setting = f"{escape_unprintable(truncate(key, 80))}={short_repr(value)}"
            raise WeightsError(
                f"{where}: the tokenizer's setting {setting} is not read; expected "
                f"{' and '.join(_KWARGS)} at most, a string and a boolean. Remove it, or choose "
                "another model"
            )
    return _KWARGS | stated


def _load(name: str, folder: Path | None, where: str) -> Any:
    """Return the tokenizer of transformers."""
    if folder is not None and not (folder / CONFIG).exists():
        folder = None
    if folder is None and name not in NAMES:
        raise WeightsError(
            f"{where}: hf_tokenizer_name: expected one of {', '.join(NAMES)}, found "
            f"{short_repr(name)}. Other tokenizers are read only from the folder of the "
            f"weights: put {CONFIG} and tokenizer.json (or its vocabulary) there, from a "
            "repository that you trust"
        )
    try:
        import transformers
    except ImportError as error:
        raise WeightsError(
            f"{where} has the tokenizer {name}, which transformers reads: "
            f"{install_command('convert')}"
        ) from error
    if folder is not None:
        with tempfile.TemporaryDirectory(prefix="tokenizer-") as copies:
            copy_tokenizer(folder, Path(copies))
            with _errors(f"{where}: the tokenizer in {folder}"):
                return transformers.AutoTokenizer.from_pretrained(
                    copies, trust_remote_code=False, local_files_only=True
                )
    if Path(name).exists():
        raise WeightsError(
            f"{where}: {name} is a tokenizer of the hub, and transformers would read ./{name} "
            "instead; start the command in another directory"
        )
    advice = (
        f". Without a network: on another machine hf download {name} {_NO_WEIGHTS}, then copy "
        "its cache and set HF_HOME, or put the files beside the weights file"
    )
    with _errors(
        f"{where}: the tokenizer {name}, from the hub or its cache,", advice, hold_stderr=False
    ):
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)


@contextmanager
def _errors(what: str, advice: str = "", hold_stderr: bool = True) -> Iterator[None]:
    """Convert whatever transformers raises for files that it cannot read to a WeightsError."""
    try:
        with rust_errors(what, hold_stderr):
            yield
    except WeightsError:
        raise
    except Exception as error:
        reason = first_line(error).rstrip(".")
        raise WeightsError(f"{what} cannot be read: {reason}{advice}") from error


def _without_unknown_tokens(backend: tokenizers.Tokenizer, vocab_size: int) -> tokenizers.Tokenizer:
    """Return the tokenizer without special tokens that the model has no embedding for.

    T5's tokenizers may have a hundred `<extra_id_N>` more than the model. In a text, they would
    make open_clip fail; here they are tokenized as ordinary characters.
    """
    content = json.loads(backend.to_str())
    added, model = content["added_tokens"], content["model"]
    unknown = {token["content"] for token in added if token["id"] >= vocab_size}
    if not unknown:
        return backend
    content["added_tokens"] = [token for token in added if token["id"] < vocab_size]
    if model["type"] == "Unigram" and unknown.issuperset(p for p, _ in model["vocab"][vocab_size:]):
        model["vocab"] = model["vocab"][:vocab_size]
    return tokenizers.Tokenizer.from_str(json.dumps(content))
