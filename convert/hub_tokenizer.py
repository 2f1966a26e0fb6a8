"""The tokenizers that some models of OpenCLIP name on the Hugging Face hub.

transformers reads them, and only here: the checkpoint directory keeps the file of the `tokenizers`
library. A tokenizer comes from the folder of the weights, or it is one of `NAMES`. Weights can name
no other repository, path or address. From a folder transformers sees copies of the files in
`FILES` alone, with the known settings alone: no code, and nothing that points out of the folder.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import tokenizers
from annotated_types import Interval, MaxLen
from typing_extensions import TypedDict

from convert.hub import first_line
from lattec_jax.data.text.tokenizer import FILE_NAME, HubTokenizer, largest_token_id
from lattec_jax.data.text.tokenizer_rules import check_rules
from lattec_jax.runtime.errors import WeightsError, short_repr
from lattec_jax.runtime.rust_errors import rust_errors
from lattec_jax.runtime.safe_read import parse_json, read_bytes
from lattec_jax.runtime.text import escape_unprintable, truncate
from lattec_jax.runtime.validation import STRICT, validate

# What open_clip's own models name, all in `open_clip/model_configs`.
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
CONFIG = "tokenizer_config.json"
_VOCABULARIES = (
    "tokenizer.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_SPECIAL, _ADDED, _MODEL = "special_tokens_map.json", "added_tokens.json", "config.json"
FILES = (CONFIG, *_VOCABULARIES, _SPECIAL, _ADDED, _MODEL)
MAX_CONFIG_BYTES = 2**24  # of a JSON file of settings
MAX_VOCABULARY_BYTES = 2**28
_MODEL_TYPES = {"bert", "gemma", "gemma2", "m2m_100", "mt5", "nllb", "roberta", "t5"}
_MODEL_TYPES |= {"xlm-roberta"}

# What a model's `tokenizer_kwargs` may set, as open_clip's models do, and the default. Nothing else
# reaches transformers: `trust_remote_code` would run a Python file that comes with the weights.
_KWARGS = {"clean": "whitespace", "strip_sep_token": False}
_NO_WEIGHTS = "--exclude '*.bin' '*.safetensors' '*.h5' '*.msgpack' '*.ot' '*.onnx'"

_ADVICE = "choose a tokenizer of a model that open_clip has"

_NAME = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)

_Text = Annotated[str, MaxLen(1000)]
_Id = Annotated[int, Interval(ge=0, lt=2**31)]
_AddedToken = TypedDict(
    "_AddedToken",
    {
        "__type": Literal["AddedToken"],
        "content": _Text,
        "lstrip": bool,
        "normalized": bool,
        "rstrip": bool,
        "single_word": bool,
        "special": bool,
        "id": _Id,
    },
    total=False,
)
_AddedToken.__pydantic_config__ = STRICT
_Token = _Text | _AddedToken | None


class _Settings(TypedDict, total=False):
    """What is taken from `tokenizer_config.json` and `special_tokens_map.json`."""

    tokenizer_class: Literal[
        "BertTokenizer",
        "BertTokenizerFast",
        "GemmaTokenizer",
        "GemmaTokenizerFast",
        "MT5Tokenizer",
        "MT5TokenizerFast",
        "NllbTokenizer",
        "NllbTokenizerFast",
        "PreTrainedTokenizerFast",
        "RobertaTokenizer",
        "RobertaTokenizerFast",
        "T5Tokenizer",
        "T5TokenizerFast",
        "TokenizersBackend",
        "XLMRobertaTokenizer",
        "XLMRobertaTokenizerFast",
        None,
    ]
    bos_token: _Token
    eos_token: _Token
    unk_token: _Token
    sep_token: _Token
    pad_token: _Token
    cls_token: _Token
    mask_token: _Token
    additional_special_tokens: list[_Text | _AddedToken] | None
    extra_special_tokens: list[_Text | _AddedToken] | dict[_Text, _Text | _AddedToken] | None
    added_tokens_decoder: dict[_Text, _AddedToken]
    model_max_length: int | float | None
    extra_ids: Annotated[int, Interval(ge=0, le=1000)]
    unk_id: _Id
    padding_side: Literal["left", "right"]
    truncation_side: Literal["left", "right"]
    errors: Literal["strict", "ignore", "replace"]
    do_lower_case: bool
    do_basic_tokenize: bool
    strip_accents: bool | None
    tokenize_chinese_chars: bool
    clean_up_tokenization_spaces: bool | None
    spaces_between_special_tokens: bool | None
    split_special_tokens: bool
    add_prefix_space: bool | None
    add_bos_token: bool | None
    add_eos_token: bool | None
    trim_offsets: bool
    keep_accents: bool | None
    legacy: bool | None
    legacy_behaviour: bool
    src_lang: _Text | None
    tgt_lang: _Text | None


_Settings.__pydantic_config__ = STRICT
# Written by transformers beside these, without an effect on token ids, or replaced by the folder.
_WITHOUT_EFFECT = {"auto_map", "backend", "chat_template", "device_map", "from_slow", "is_local"}
_WITHOUT_EFFECT |= {"local_files_only", "max_length", "merges_file", "model_input_names"}
_WITHOUT_EFFECT |= {"model_specific_special_tokens", "name_or_path", "never_split"}
_WITHOUT_EFFECT |= {"pad_to_multiple_of", "pad_token_type_id", "processor_class", "return_tensors"}
_WITHOUT_EFFECT |= {"sp_model_kwargs", "special_tokens_map_file", "stride", "tokenizer_file"}
_WITHOUT_EFFECT |= {"truncation_strategy", "use_default_system_prompt", "use_fast", "vocab_file"}


def read(text_cfg: Mapping[str, Any], folder: Path | None, where: str) -> HubTokenizer:
    """Return the tokenizer that `text_cfg` names, as open_clip's `HFTokenizer` uses it.

    Args:
        text_cfg: open_clip's, with `hf_tokenizer_name`.
        folder: of the weights file: tokenizer files in it come first, as in open_clip.
        where: of the configuration, for messages.

    Raises:
        WeightsError: transformers is missing, the tokenizer cannot be found, or it is of a kind
            that is not read.
    """
    name = text_cfg["hf_tokenizer_name"]
    if not isinstance(name, str) or ".." in name or not _NAME.fullmatch(name):
        raise WeightsError(
            f"{where}: hf_tokenizer_name: expected a name as on the hub, organization/name, found "
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
    """The known settings of the tokenizer with their defaults.

    Raises:
        WeightsError: there are others, or one has another type.
    """
    stated = dict(text_cfg.get("tokenizer_kwargs") or {})
    if text_cfg.get("tokenizer_mode"):
        stated["tokenizer_mode"] = text_cfg["tokenizer_mode"]
    for key, value in stated.items():
        if key not in _KWARGS or type(value) is not type(_KWARGS[key]):
            setting = f"{escape_unprintable(truncate(key, 80))}={short_repr(value)}"
            raise WeightsError(
                f"{where}: the tokenizer's setting {setting} is not read; "
                f"expected {' and '.join(_KWARGS)} at most, a text and a boolean. Remove it, or "
                "choose another model"
            )
    return _KWARGS | stated


def _load(name: str, folder: Path | None, where: str) -> Any:
    """transformers' tokenizer."""
    beside = folder is not None and (folder / CONFIG).exists()
    if not beside and name not in NAMES:
        raise WeightsError(
            f"{where}: hf_tokenizer_name: expected one of {', '.join(NAMES)}, found "
            f"{short_repr(name)}. Other tokenizers are read "
            f"only from the folder of the weights: put {CONFIG} and "
            "tokenizer.json (or its vocabulary) there, from a repository that you trust"
        )
    try:
        import transformers
    except ImportError as error:
        raise WeightsError(
            f"{where} has the tokenizer {name}, which transformers reads: "
            "pip install -e '.[convert]'"
        ) from error
    if beside:
        with tempfile.TemporaryDirectory(prefix="tokenizer-") as copies:
            _copy(folder, Path(copies))
            with _errors(f"{where}: the tokenizer in {folder}"):
                return transformers.AutoTokenizer.from_pretrained(
                    copies, trust_remote_code=False, local_files_only=True
                )
    if Path(name).exists():
        raise WeightsError(
            f"{where}: {name} is the hub's tokenizer, and transformers would read ./{name} in its "
            "place; start the command in another directory"
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
    """Turn whatever transformers raises on files that it cannot read into a WeightsError."""
    try:
        with rust_errors(what, hold_stderr):
            yield
    except WeightsError:
        raise
    except Exception as error:
        reason = first_line(error).rstrip(".")
        raise WeightsError(f"{what} cannot be read: {reason}{advice}") from error


def _copy(folder: Path, copies: Path) -> None:
    """Copy what a tokenizer may consist of; of settings the known ones.

    Raises:
        WeightsError: a file cannot be read, or holds settings that are not known.
    """
    for name in _VOCABULARIES:
        content = _content(folder, name, MAX_VOCABULARY_BYTES)
        if content is not None:
            if name.endswith(".json"):
                _json(folder / name, content)
            if name == FILE_NAME:
                check_rules(content.decode(), str(folder / name))
            (copies / name).write_bytes(content)
    for name in (CONFIG, _SPECIAL, _ADDED, _MODEL):
        content = _content(folder, name, MAX_CONFIG_BYTES)
        if content is not None:
            kept = _kept(folder / name, _json(folder / name, content))
            (copies / name).write_text(json.dumps(kept), encoding="utf-8")


def _kept(path: Path, content: Any) -> dict[str, Any]:
    """The part of a JSON file that transformers may see."""
    if path.name == _ADDED:
        return validate(dict[_Text, _Id], content, str(path), WeightsError, _ADVICE)
    if path.name == _MODEL:  # the weights' or the tokenizer's; read where no class is stated
        kind = content.get("model_type") if isinstance(content, dict) else None
        return {"model_type": kind} if isinstance(kind, str) and kind in _MODEL_TYPES else {}
    if isinstance(content, dict):
        content = {key: content[key] for key in content if key not in _WITHOUT_EFFECT}
    validate(
        _Settings,
        content,
        str(path),
        WeightsError,
        _ADVICE,
    )
    return content


def _content(folder: Path, name: str, max_bytes: int) -> bytes | None:
    """A file's bytes, None where there is none.

    Raises:
        WeightsError: it cannot be read, or is a link out of the folder.
    """
    path = folder / name
    try:
        target = path.resolve(strict=True)
        if not target.is_relative_to(_home(folder.resolve())):
            raise WeightsError(
                f"{path}: expected a file of its folder, found a link to another folder; if you "
                "trust it, copy the file itself"
            )
        return read_bytes(target, max_bytes)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise WeightsError(f"{path} cannot be read: {first_line(error)}") from error


def _home(folder: Path) -> Path:
    """Where the links of a folder may lead: into it.

    In the hub's cache models--NAME/snapshots/COMMIT links to files in models--NAME/blobs.
    """
    repository = folder.parent.parent
    cached = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if cached else folder


def _json(path: Path, content: bytes) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {first_line(error)}") from error


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
