"""Check the rules in a `tokenizer.json` before the `tokenizers` library applies them.

A hostile file could exhaust the memory: each step may make a text longer, and thirty steps
"a" -> "aa" turn one letter into a gigabyte. So only the kinds of steps of known tokenizers are
allowed, and the product of their growth factors is bounded. Imports neither JAX nor torch.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from annotated_types import Interval

from lattec_jax.runtime.errors import WeightsError, short_repr
from lattec_jax.runtime.text import escape_unprintable, truncate

MAX_STEPS = 64  # of each kind, sequences included
MAX_CONTENT = 100  # characters in the replacement of a step
MAX_GROWTH = 512  # factor by which the number of characters may grow
_MAX_TEMPLATE = 32  # items of a template: the text and its special tokens
_MAX_SPECIAL_IDS = 8  # ids of one special token

# Ranges of a tokenizer's settings. The largest vocabulary of open_clip has 901,629 token ids.
MAX_TOKEN_IDS = 2**24
ContextLength = Annotated[int, Interval(ge=2, le=2**14)]
TokenId = Annotated[int, Interval(ge=0, lt=MAX_TOKEN_IDS)]

_Step = Mapping[str, Any]
# The factor by which a step may make a text longer, or a function that reads it from the step.
_Growth = float | Callable[[_Step], float]


def check_rules(text: str, where: str) -> None:
    """Raise WeightsError if a `tokenizer.json`, of JSON of bounded depth, has unknown rules or a
    text may grow too much."""
    try:
        _check(json.loads(text, object_pairs_hook=_unique_keys))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        reason = escape_unprintable(truncate(str(error), 300))
        raise WeightsError(
            f"{where}: expected the rules of a known tokenizer, found another ({reason}); choose "
            "a tokenizer of a model that open_clip has"
        ) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # With a repeated key the library may use another value than the one checked here.
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object has a key twice")
    return content


def _check(content: Any) -> None:
    growth = 1.0
    for section, (kinds, inner) in _SECTIONS.items():
        steps = list(_steps(content.get(section), section, kinds, inner))
        if len(steps) > MAX_STEPS:
            raise ValueError(f"{section} has {len(steps)} steps, more than {MAX_STEPS}")
        for step in steps:
            factor = kinds[step["type"]]
            growth *= factor(step) if callable(factor) else factor
    if growth > MAX_GROWTH:
        raise ValueError(f"a text may become {growth:.4g} times as long, more than {MAX_GROWTH}")
    model = content.get("model") or {}
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if len(model.get(key) or "") > MAX_CONTENT:
            raise ValueError(f"model.{key} has more than {MAX_CONTENT} characters")


def _steps(step: Any, section: str, kinds: Mapping[str, _Growth], inner: str) -> Iterator[_Step]:
    if step is None:
        return
    if step.get("type") not in kinds:
        raise ValueError(
            f"{section}: expected one of {', '.join(sorted(kinds))}, found "
            f"{short_repr(step.get('type'))}"
        )
    yield step
    if step["type"] == "Sequence":
        for part in step[inner]:
            yield from _steps(part, section, kinds, inner)


def _replace(step: _Step) -> float:
    content = len(step["content"])
    if content > MAX_CONTENT:
        raise ValueError(f"Replace: the content has more than {MAX_CONTENT} characters")
    pattern = step["pattern"].get("String")
    if pattern:
        return max(1, content / len(pattern))
    return 1 + content  # a regular expression may match between any two characters


def _prepend(step: _Step) -> float:
    if len(step["prepend"]) > MAX_CONTENT:
        raise ValueError(f"Prepend: the text has more than {MAX_CONTENT} characters")
    return 1 + len(step["prepend"])


def _precompiled_map(step: _Step) -> float:
    # The map: the size of a trie, the trie, and all replacements, each with a zero byte at its end.
    # The longest replacement in SentencePiece's maps has 18 characters.
    content = base64.b64decode(step["precompiled_charsmap"] or "")
    trie = int.from_bytes(content[:4], "little")
    longest = max(len(t.decode(errors="replace")) for t in content[4 + trie :].split(b"\0"))
    return max(1, longest)


def _template(step: _Step) -> float:
    items = step["single"]
    texts = sum("Sequence" in item for item in items)
    if texts != 1 or len(items) > _MAX_TEMPLATE or len(step["pair"]) > _MAX_TEMPLATE:
        raise ValueError(
            f"TemplateProcessing: expected the text once and at most {_MAX_TEMPLATE} items"
        )
    if any(len(token["ids"]) > _MAX_SPECIAL_IDS for token in step["special_tokens"].values()):
        raise ValueError(f"TemplateProcessing: a token has more than {_MAX_SPECIAL_IDS} ids")
    return 1


# The largest number of characters that replace one. Lower case: "İ" becomes 2; NFD: 4; NFKD and
# NFKC: U+FDFA becomes 18. ByteLevel writes each of up to four bytes as one character.
_NORMALIZERS: dict[str, _Growth] = {
    **dict.fromkeys(("Sequence", "Nmt", "Strip", "StripAccents"), 1),
    "BertNormalizer": 24,  # spaces around a character, NFD and lower case
    "ByteLevel": 4,
    "Lowercase": 2,
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Precompiled": _precompiled_map,
    "Prepend": _prepend,
    "Replace": _replace,
}
_SPLITTING = ("BertPreTokenizer", "Digits", "Punctuation", "Split", "Whitespace", "WhitespaceSplit")
_PRE_TOKENIZERS: dict[str, _Growth] = {
    **dict.fromkeys(("Sequence", *_SPLITTING), 1),
    "ByteLevel": 5,  # a space before each word
    "Metaspace": 2,  # a sign before each word
}
_POST_PROCESSORS: dict[str, _Growth] = {
    **dict.fromkeys(("Sequence", "BertProcessing", "ByteLevel", "RobertaProcessing"), 1),
    "TemplateProcessing": _template,
}
_DECODING = ("BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Strip", "WordPiece")
# Unused, as nothing is decoded.
_DECODERS: dict[str, _Growth] = dict.fromkeys(("Sequence", "Replace", *_DECODING), 1)
_SECTIONS = {
    "normalizer": (_NORMALIZERS, "normalizers"),
    "pre_tokenizer": (_PRE_TOKENIZERS, "pretokenizers"),
    "post_processor": (_POST_PROCESSORS, "processors"),
    "decoder": (_DECODERS, "decoders"),
}
