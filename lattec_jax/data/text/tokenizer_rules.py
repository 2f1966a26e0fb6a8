"""Which rules a file of the `tokenizers` library may hold, before the library applies them.

A text may grow at every step, and a file may hold any number of steps: thirty times "a" -> "aa"
make a gigabyte of one letter. So the kinds of steps are those that known tokenizers have, and the
product of what each can make of one character is bounded. Imports neither JAX nor torch.
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
MAX_CONTENT = 100  # characters that a step puts in the place of others
MAX_GROWTH = 512  # times the characters of a text
_MAX_TEMPLATE = 32  # pieces around a text
_MAX_SPECIAL_IDS = 8  # that a special token stands for

# Ranges of what a tokenizer states; the largest vocabulary of open_clip has 901,629 token ids.
MAX_TOKEN_IDS = 2**24
ContextLength = Annotated[int, Interval(ge=2, le=2**14)]
TokenId = Annotated[int, Interval(ge=0, lt=MAX_TOKEN_IDS)]

_Step = Mapping[str, Any]


def check_rules(text: str, where: str) -> None:
    """Raise WeightsError where `tokenizer.json` holds rules that are not known or grow a text.

    Args:
        text: JSON of bounded depth.
        where: of it, for messages.
    """
    try:
        _check(json.loads(text, object_pairs_hook=_unique))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        reason = escape_unprintable(truncate(str(error), 300))
        raise WeightsError(
            f"{where}: expected the rules of a known tokenizer, found another ({reason}); choose "
            "a tokenizer of a model that open_clip has"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal keys the library may take the other one."""
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
            growth *= kinds[step["type"]](step)
    if growth > MAX_GROWTH:
        raise ValueError(f"a text may become {growth:.4g} times as long, more than {MAX_GROWTH}")
    model = content.get("model") or {}
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if len(model.get(key) or "") > MAX_CONTENT:
            raise ValueError(f"model.{key} has more than {MAX_CONTENT} characters")


def _steps(
    step: Any, section: str, kinds: Mapping[str, Callable[[_Step], float]], inner: str
) -> Iterator[_Step]:
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


def _same(_: _Step) -> float:
    return 1


def _at_most(times: float) -> Callable[[_Step], float]:
    return lambda _: times


def _replaced(step: _Step) -> float:
    content = len(step["content"])
    if content > MAX_CONTENT:
        raise ValueError(f"Replace: the content has more than {MAX_CONTENT} characters")
    pattern = step["pattern"].get("String")
    if pattern:
        return max(1, content / len(pattern))
    return 1 + content  # a regular expression may match between any two characters


def _prepended(step: _Step) -> float:
    if len(step["prepend"]) > MAX_CONTENT:
        raise ValueError(f"Prepend: the text has more than {MAX_CONTENT} characters")
    return 1 + len(step["prepend"])


def _precompiled(step: _Step) -> float:
    """The longest text of the map: after its trie, all of them, each with a zero byte at its end.

    The longest of SentencePiece's own maps has 18 characters.
    """
    content = base64.b64decode(step["precompiled_charsmap"] or "")
    trie = int.from_bytes(content[:4], "little")
    longest = max(len(t.decode(errors="replace")) for t in content[4 + trie :].split(b"\0"))
    return max(1, longest)


def _template(step: _Step) -> float:
    pieces = step["single"]
    texts = sum("Sequence" in piece for piece in pieces)
    if texts != 1 or len(pieces) > _MAX_TEMPLATE or len(step["pair"]) > _MAX_TEMPLATE:
        raise ValueError(
            f"TemplateProcessing: expected the text once and at most {_MAX_TEMPLATE} pieces"
        )
    if any(len(token["ids"]) > _MAX_SPECIAL_IDS for token in step["special_tokens"].values()):
        raise ValueError(f"TemplateProcessing: a token stands for more than {_MAX_SPECIAL_IDS} ids")
    return 1


# What one character can become at most. Case: "İ" has two; NFD: 4; NFKD and NFKC: U+FDFA has 18.
# ByteLevel writes each of up to four bytes as one character.
_NORMALIZERS: dict[str, Callable[[_Step], float]] = {
    "Sequence": _same,
    "BertNormalizer": _at_most(24),  # spaces around a character, NFD and lower case
    "ByteLevel": _at_most(4),
    "Lowercase": _at_most(2),
    "NFC": _at_most(3),
    "NFD": _at_most(4),
    "NFKC": _at_most(18),
    "NFKD": _at_most(18),
    "Nmt": _same,
    "Precompiled": _precompiled,
    "Prepend": _prepended,
    "Replace": _replaced,
    "Strip": _same,
    "StripAccents": _same,
}
_PRE_TOKENIZERS: dict[str, Callable[[_Step], float]] = {
    "Sequence": _same,
    "BertPreTokenizer": _same,
    "ByteLevel": _at_most(5),  # a space before each piece
    "Digits": _same,
    "Metaspace": _at_most(2),  # a sign before each piece
    "Punctuation": _same,
    "Split": _same,
    "Whitespace": _same,
    "WhitespaceSplit": _same,
}
_POST_PROCESSORS: dict[str, Callable[[_Step], float]] = {
    "Sequence": _same,
    "BertProcessing": _same,
    "ByteLevel": _same,
    "RobertaProcessing": _same,
    "TemplateProcessing": _template,
}
_DECODERS = {  # nothing is decoded
    "Sequence": _same,
    "BPEDecoder": _same,
    "ByteFallback": _same,
    "ByteLevel": _same,
    "Fuse": _same,
    "Metaspace": _same,
    "Replace": _same,
    "Strip": _same,
    "WordPiece": _same,
}
_SECTIONS = {
    "normalizer": (_NORMALIZERS, "normalizers"),
    "pre_tokenizer": (_PRE_TOKENIZERS, "pretokenizers"),
    "post_processor": (_POST_PROCESSORS, "processors"),
    "decoder": (_DECODERS, "decoders"),
}
