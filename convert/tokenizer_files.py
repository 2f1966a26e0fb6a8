"""Copy the files of a tokenizer for transformers: known files with known settings only.

A tokenizer's folder may come from anyone. transformers must see no code in it, no setting that
names another repository or file, and no link out of the folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval, MaxLen
from typing_extensions import TypedDict

from convert.hub import first_line
from lattec_jax.data.text.tokenizer import FILE_NAME
from lattec_jax.data.text.tokenizer_rules import check_rules
from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.safe_read import parse_json, read_bytes
from lattec_jax.runtime.validation import STRICT, validate

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

_ADVICE = "choose a tokenizer of a model that open_clip has"

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
# pydantic reads this attribute, which type checkers do not know of a TypedDict.
_AddedToken.__pydantic_config__ = STRICT  # pyright: ignore[reportAttributeAccessIssue]
_Token = _Text | _AddedToken | None


class _Settings(TypedDict, total=False):
    """The settings copied from `tokenizer_config.json` and `special_tokens_map.json`."""

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


_Settings.__pydantic_config__ = STRICT  # pyright: ignore[reportAttributeAccessIssue]
# Other settings that transformers writes; they do not affect token ids, or the copies replace them.
_WITHOUT_EFFECT = {"auto_map", "backend", "chat_template", "device_map", "from_slow", "is_local"}
_WITHOUT_EFFECT |= {"local_files_only", "max_length", "merges_file", "model_input_names"}
_WITHOUT_EFFECT |= {"model_specific_special_tokens", "name_or_path", "never_split"}
_WITHOUT_EFFECT |= {"pad_to_multiple_of", "pad_token_type_id", "processor_class", "return_tensors"}
_WITHOUT_EFFECT |= {"sp_model_kwargs", "special_tokens_map_file", "stride", "tokenizer_file"}
_WITHOUT_EFFECT |= {"truncation_strategy", "use_default_system_prompt", "use_fast", "vocab_file"}


def copy_tokenizer(folder: Path, copies: Path) -> None:
    """Copy the files in `FILES`; raise WeightsError for unknown settings."""
    for name in _VOCABULARIES:
        content = _read(folder, name, MAX_VOCABULARY_BYTES)
        if content is not None:
            if name.endswith(".json"):
                _json(folder / name, content)
            if name == FILE_NAME:
                check_rules(content.decode(), str(folder / name))
            (copies / name).write_bytes(content)
    for name in (CONFIG, _SPECIAL, _ADDED, _MODEL):
        content = _read(folder, name, MAX_CONFIG_BYTES)
        if content is not None:
            settings = _known_settings(folder / name, _json(folder / name, content))
            (copies / name).write_text(json.dumps(settings), encoding="utf-8")


def _known_settings(path: Path, content: Any) -> dict[str, Any]:
    """Return the settings of a JSON file that transformers may see."""
    if path.name == _ADDED:
        return validate(dict[_Text, _Id], content, str(path), WeightsError, _ADVICE)
    if path.name == _MODEL:  # transformers reads it if no tokenizer class is stated
        kind = content.get("model_type") if isinstance(content, dict) else None
        return {"model_type": kind} if isinstance(kind, str) and kind in _MODEL_TYPES else {}
    if isinstance(content, dict):
        content = {key: content[key] for key in content if key not in _WITHOUT_EFFECT}
    validate(_Settings, content, str(path), WeightsError, _ADVICE)
    return content


def _read(folder: Path, name: str, max_bytes: int) -> bytes | None:
    """Read a file, unless it is a link out of the folder; None if it does not exist."""
    path = folder / name
    try:
        target = path.resolve(strict=True)
        if not target.is_relative_to(_link_root(folder.resolve())):
            raise WeightsError(
                f"{path}: expected a file of its folder, found a link to another folder; if you "
                "trust it, copy the file itself"
            )
        return read_bytes(target, max_bytes)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a circular link
        raise WeightsError(f"{path} cannot be read: {first_line(error)}") from error


def _link_root(folder: Path) -> Path:
    """Return the directory that the folder's links must not leave: usually itself.

    In the hub's cache, models--NAME/snapshots/COMMIT has links to files in models--NAME/blobs.
    """
    repository = folder.parent.parent
    cached = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if cached else folder


def _json(path: Path, content: bytes) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {first_line(error)}") from error
