"""Text to token ids: CLIP's byte-pair tokenizer, those of the hub, and the demo's word-level one.

Cleaning (mending encodings, HTML entities, white space, case) happens in Python, because that is
where open_clip does it and where its rules come from. All the rest is in `tokenizer.json`, which
the `tokenizers` library reads without any other file. Imports neither JAX nor torch.
"""

from __future__ import annotations

import dataclasses
import gzip
import html
import json
import string
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import ftfy
import numpy as np
import tokenizers
from annotated_types import MaxLen
from tokenizers import Regex, models, pre_tokenizers, processors

from lattec_jax.data.text.tokenizer_rules import MAX_TOKEN_IDS, ContextLength, TokenId, check_rules
from lattec_jax.runtime.errors import WeightsError, short_repr
from lattec_jax.runtime.rust_errors import rust_errors
from lattec_jax.runtime.safe_read import parse_json, read_text
from lattec_jax.runtime.validation import STRICT, validate

FILE_NAME = "tokenizer.json"
MAX_FILE_BYTES = 2**27  # that of a million tokens has half of it
_SAMPLE = "A photo of 2 cats, it's naïve."

# CLIP's vocabulary: 256 bytes, the same 256 at the end of a word, one id per merge, two special
# tokens. The file that open_clip carries begins with a header line and holds more merges.
_CLIP_MERGES = 49408 - 2 * 256 - 2
_CLIP_START, _CLIP_END = "<start_of_text>", "<end_of_text>"
_END_OF_WORD = "</w>"
_AT_ONCE = 20_000  # texts; what the library returns takes 3 KB for each of them

# Letters and numbers added by Unicode 15 to 18. open_clip's regular expressions (package `regex`)
# know them; those of the `tokenizers` library know some or none, depending on its version.
_NEW_LETTERS = (
    "558 58b-58c 88f c5c cdc 1c89-1c8a 208f 209d-209f a7cb-a7cf a7d2 a7d4 a7da-a7dd a7e2 a7f1 "
    "ab6c-ab6d 105c0-105f3 107bb-107bf 10940-10959 10d4a-10d65 10d6f-10d85 10ec2-10ec7 "
    "10ed9-10eee 1123f-11240 11380-11389 1138b 1138e 11390-113b5 113b7 113d1 113d3 11b0a "
    "11bc0-11be0 11db0-11ddb 11df1 11f02 11f04-11f10 11f12-11f33 1342f 13441-13446 13460-143fa "
    "16100-1611d 16d40-16d6c 16ea0-16eb8 16ebb-16ed3 16ff2-16ff3 187f8-187ff 18cd6-18cda 18cff "
    "18d09-18d20 18d80-18df2 18e00-19191 191a0-191d2 1b123-1b128 1b132 1b155 1b168 1d6a6 "
    "1df1f-1df81 1df90-1df96 1dfcd-1dfff 1e030-1e06d 1e4d0-1e4eb 1e5d0-1e5ed 1e5f0 1e6c0-1e6de "
    "1e6e0-1e6e2 1e6e4-1e6e5 1e6e7-1e6ed 1e6f0-1e6f4 1e6fe-1e6ff 2b739-2b73f 2b81e 2cea2-2cead "
    "2ebf0-2ee5d 31350-33479 3d000-3fc3f"
)
_NEW_NUMBERS = (
    "10d40-10d49 116d0-116e3 11bf0-11bf9 11de0-11de9 11f50-11f59 1246f 12475-1247f 12550-12686 "
    "16130-16139 16d70-16d79 16ff4-16ff6 1ccf0-1ccf9 1d2c0-1d2d3 1e4f0-1e4f9 1e5f1-1e5fa"
)

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What `Tokenizer.load` needs beside the rules."""

    __pydantic_config__ = STRICT
    clean: Literal["lower", "whitespace", "canonicalize"]
    context_length: ContextLength
    pad_id: TokenId


@dataclasses.dataclass(frozen=True)
class _HubSettings(_Settings):
    hf_name: Annotated[str, MaxLen(200)]
    zeroed_id: TokenId | None


class Tokenizer:
    """Texts in, a matrix of token ids out.

    Every row is: start token, the text's tokens, end token, padding. Over-long texts are cut so
    that the end token stays, because the text tower reads its feature there.
    """

    _settings: ClassVar[type[_Settings]] = _Settings

    def __init__(
        self, backend: tokenizers.Tokenizer, context_length: int, pad_id: int, clean: str
    ) -> None:
        """Wrap a `tokenizers` tokenizer whose post-processor adds a start and an end token."""
        if not isinstance(clean, str) or clean not in _CLEANERS:
            raise WeightsError(
                f"the tokenizer's text cleaning is {short_repr(clean)}; expected one of "
                f"{', '.join(sorted(_CLEANERS))}"
            )
        self.context_length = context_length
        self.pad_id = pad_id
        self.clean = clean
        self._backend = backend
        self._clean = _CLEANERS[clean]
        with rust_errors("the tokenizer"):
            largest = largest_token_id(backend)
            backend.no_padding()  # the file may ask for any length
            backend.no_truncation()
            empty = backend.encode("").ids
            self._read_special_tokens(empty)
            backend.encode(_SAMPLE)  # rules that cannot be applied fail here, and not in a run
        self._vocab_size = max(largest, pad_id, *empty) + 1

    def _read_special_tokens(self, empty: list[int]) -> None:
        """Learn start and end token from the encoding of the empty text."""
        if self.context_length < 2:
            raise WeightsError(
                f"the tokenizer's context_length is {self.context_length}; start and end token "
                "alone need 2"
            )
        if len(empty) != 2:
            raise WeightsError(
                "expected a tokenizer that puts one start token and one end token around a text, "
                f"found one that encodes the empty text as {empty}"
            )
        self.start_id, self.end_id = empty
        # Written out inside a text, open_clip reads these as the tokens that they spell.
        names = {self._backend.id_to_token(i): i for i in empty}
        self._special = {name: i for name, i in names.items() if name}

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included: 1 more than the largest."""
        return self._vocab_size

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Encode N texts.

        Returns:
            `[N, context_length]` int32.
        """
        texts = [texts] if isinstance(texts, str) else texts
        tokens = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        for start in range(0, len(texts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            self._fill(tokens[part], [self._clean(text) for text in texts[part]])
        return tokens

    def _fill(self, tokens: np.ndarray, texts: list[str]) -> None:
        """Write cleaned texts into `[n, context_length]` of padding."""
        with rust_errors("a text, by the tokenizer's rules,", hold_stderr=False):
            ids = [
                encoding.ids
                for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)
            ]
            for row, text in enumerate(texts):
                if any(token in text for token in self._special):
                    ids[row] = self._encode_with_special_tokens(text)
        room = self.context_length - 2
        lengths = np.fromiter((min(len(row), room) for row in ids), np.int32, len(ids))
        tokens[:, 0] = self.start_id
        columns = np.arange(1, self.context_length)
        tokens[:, 1:][columns <= lengths[:, None]] = np.fromiter(
            chain.from_iterable(row[:room] for row in ids), np.int32, int(lengths.sum())
        )
        tokens[np.arange(len(ids)), lengths + 1] = self.end_id

    def open_clip_settings(self) -> dict[str, Any]:
        """What open_clip's `text_cfg` says of this tokenizer."""
        return {} if self.clean == "lower" else {"tokenizer_kwargs": {"clean": self.clean}}

    def to_json(self) -> str:
        """The rules of the `tokenizers` library as JSON."""
        return self._backend.to_str()

    def settings(self) -> dict[str, Any]:
        """What `load` needs beside the rules."""
        return {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self._settings)
        }

    def save(self, directory: Path) -> dict[str, Any]:
        """Write `tokenizer.json`; return `settings`."""
        self._backend.save(str(directory / FILE_NAME))
        return self.settings()

    @classmethod
    def load(cls, directory: Path, settings: Mapping[str, Any], where: str = "") -> Tokenizer:
        """Read back what `save` wrote.

        Args:
            directory: with `tokenizer.json`.
            settings: what `save` returned.
            where: of the settings, for messages.

        Raises:
            WeightsError: the file is missing or damaged, or the settings are not save's.
        """
        path = directory / FILE_NAME
        kind = HubTokenizer if "hf_name" in settings else Tokenizer
        advice = "convert the weights again"
        where = where or f"the tokenizer settings of {directory}"
        read = validate(kind._settings, dict(settings), where, WeightsError, advice)
        backend = read_backend(path)
        # Without these there are no words, or nothing around a text.
        if backend.post_processor is None or (kind is Tokenizer and backend.pre_tokenizer is None):
            raise WeightsError(
                f"expected a tokenizer with a pre-tokenizer and a post-processor in {path}, found "
                f"one without; {advice}"
            )
        try:
            return kind(backend, **dataclasses.asdict(read))
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error

    def _encode_with_special_tokens(self, text: str) -> list[int]:
        """Encode a cleaned text in which the start or the end token may be written out.

        The merges would take such a word to pieces, and the library's own "added tokens" would find
        it in the middle of other punctuation too, where open_clip does not see it.
        """
        ids: list[int] = []
        for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text):
            if word in self._special:
                ids.append(self._special[word])
            else:
                ids.extend(token.id for token in self._backend.model.tokenize(word))
        return ids


class HubTokenizer(Tokenizer):
    """A tokenizer of the Hugging Face hub, equal to open_clip's `HFTokenizer` id for id.

    `tokenizer.json` holds all its rules: which special tokens surround a text (BERT's `[CLS]` and
    `[SEP]`, XLM-R's `<s>` and `</s>`, T5's `</s>` alone) and which are read inside of one. An
    over-long text is cut so that they stay.
    """

    _settings = _HubSettings

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        context_length: int,
        pad_id: int,
        clean: str,
        hf_name: str,
        zeroed_id: int | None,
    ) -> None:
        """Wrap the backend of a tokenizer of transformers.

        Args:
            backend: its truncation and padding are set here.
            context_length: tokens per text, special ones included.
            pad_id: fills the rows.
            clean: "whitespace" where open_clip's configuration says nothing.
            hf_name: the tokenizer's name on the hub, for exports.
            zeroed_id: the separator that open_clip's `strip_sep_token` replaces by 0; None where it
                is kept.
        """
        self.hf_name, self.zeroed_id = hf_name, zeroed_id
        super().__init__(backend, context_length, pad_id, clean)
        backend.enable_truncation(context_length)

    def _read_special_tokens(self, empty: list[int]) -> None:
        if self.context_length <= len(empty):
            raise WeightsError(
                f"the tokenizer's context_length is {self.context_length}; the special tokens of "
                f"{self.hf_name} alone need {len(empty)}"
            )

    def _fill(self, tokens: np.ndarray, texts: list[str]) -> None:
        with rust_errors("a text, by the tokenizer's rules,", hold_stderr=False):
            encodings = self._backend.encode_batch_fast(texts)
        for row, encoding in zip(tokens, encodings, strict=True):
            row[: len(encoding.ids)] = encoding.ids
        if self.zeroed_id is not None:
            tokens[tokens == self.zeroed_id] = 0

    def open_clip_settings(self) -> dict[str, Any]:
        """What open_clip's `text_cfg` says of this tokenizer."""
        settings: dict[str, Any] = {} if self.clean == "whitespace" else {"clean": self.clean}
        if self.zeroed_id is not None:
            settings["strip_sep_token"] = True
        return {"hf_tokenizer_name": self.hf_name, "tokenizer_kwargs": settings}

    def transformers_files(self) -> dict[str, str]:
        """Names and contents of the files from which transformers makes the same tokenizer."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": self._backend.id_to_token(self.pad_id),
        }
        if self.zeroed_id is not None:
            settings["sep_token"] = self._backend.id_to_token(self.zeroed_id)
        config = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        return {FILE_NAME: self._backend.to_str(), "tokenizer_config.json": config}


def read_backend(path: Path) -> tokenizers.Tokenizer:
    """Read a file of the `tokenizers` library.

    Raises:
        WeightsError: it is missing, too large or damaged, or holds rules that are not read.
    """
    try:
        text = read_text(path, MAX_FILE_BYTES)
        parse_json(text)  # of bounded depth: the library would overflow its stack
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"expected the tokenizer in {path}, found no such file") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"the tokenizer in {path} is not JSON: {error}") from error
    check_rules(text, f"the tokenizer in {path}")
    with rust_errors(f"the tokenizer in {path}"):
        return tokenizers.Tokenizer.from_str(text)


def largest_token_id(backend: tokenizers.Tokenizer) -> int:
    """Return the largest id that the vocabulary has.

    Raises:
        WeightsError: it is too large: the library looks at all numbers up to it.
    """
    largest = max(backend.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= MAX_TOKEN_IDS:
        raise WeightsError(
            f"expected token ids below {MAX_TOKEN_IDS}, found {largest} in the tokenizer; it is "
            "damaged"
        )
    return largest


def word_tokenizer(words: Sequence[str], context_length: int) -> Tokenizer:
    """A tokenizer that knows `words` and nothing else, for CLIPs with a small vocabulary.

    Texts are lower-cased; whatever is neither letter nor digit separates words and is dropped; a
    word that is not in `words` becomes `[unk]`. Ids: `[pad]` 0, `[unk]` 1, `[start]` 2, the words
    in their order, `[end]` last and so the largest, which is where the text tower reads its
    feature.

    Raises:
        ValueError: `words` repeats a word or holds something that is not one lower-case word.
    """
    word_pattern = pre_tokenizers.Split(Regex(r"[\p{L}\p{N}]+"), "removed", invert=True)
    wrong = [
        word
        for word in words
        if word != word.lower() or [w for w, _ in word_pattern.pre_tokenize_str(word)] != [word]
    ]
    if wrong or len(set(words)) != len(words):
        raise ValueError(f"expected different lower-case words of letters and digits; see {wrong}")
    names = ["[pad]", "[unk]", "[start]", *words, "[end]"]
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    backend.pre_tokenizer = word_pattern
    backend.post_processor = _start_and_end(vocabulary, "[start]", "[end]")
    return Tokenizer(backend, context_length, pad_id=0, clean="lower")


def clip_tokenizer(bpe_path: Path, context_length: int = 77, clean: str = "lower") -> Tokenizer:
    """CLIP's byte-pair tokenizer, equal to open_clip's `SimpleTokenizer` id for id.

    Args:
        bpe_path: open_clip's `bpe_simple_vocab_16e6.txt.gz`.
        context_length: tokens per text, start and end included.
        clean: "lower", "whitespace" or "canonicalize", as open_clip names them.

    Raises:
        WeightsError: the file does not hold CLIP's merges.
    """
    with gzip.open(bpe_path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : _CLIP_MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != _CLIP_MERGES or any(len(merge) != 2 for merge in merges):
        raise WeightsError(
            f"expected {_CLIP_MERGES} merges in {bpe_path}, found another file; "
            "it should be bpe_simple_vocab_16e6.txt.gz of the open_clip_torch package"
        )
    letters = _byte_letters()
    names = [*letters, *(letter + _END_OF_WORD for letter in letters), *map("".join, merges)]
    vocabulary = {name: i for i, name in enumerate([*names, _CLIP_START, _CLIP_END])}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_END_OF_WORD)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_clip_pattern()), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = _start_and_end(vocabulary, _CLIP_START, _CLIP_END)
    return Tokenizer(backend, context_length, pad_id=0, clean=clean)


def _byte_letters() -> list[str]:
    """The character that stands for each byte, in the order of CLIP's first 256 ids.

    Bytes that are printable in Latin-1 come first and stand for themselves; the others are given
    the characters from U+0100 on, so that no piece of a word holds white space or a control.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(i) for i in [*printable, *range(0x100, 0x100 + 256 - len(printable))]]


def _clip_pattern() -> str:
    """What is one word to CLIP: a special token, a contraction, letters, one digit, or the rest.

    open_clip ignores case here, in the manner of the `regex` package: "ſ" is an "s", but "ﬆ" is not
    "st" (as it would be to this library if told to ignore case), and the combining iota U+0345 is
    neither letter nor anything else, so it is dropped.
    """
    literal = [_CLIP_START, _CLIP_END, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]
    any_case = [
        "".join(f"[{c}{c.upper()}{'ſ' * (c == 's')}]" if c.isalpha() else c for c in word)
        for word in literal
    ]
    letter = r"\p{L}" + _character_ranges(_NEW_LETTERS)
    number = r"\p{N}" + _character_ranges(_NEW_NUMBERS)
    return "|".join([*any_case, f"[{letter}]+", f"[{number}]", rf"[^\s{letter}{number}\x{{345}}]+"])


def _character_ranges(ranges: str) -> str:
    """Hexadecimal ranges "558 58b-58c" as part of a character class."""
    return "".join(
        "-".join(rf"\x{{{code}}}" for code in code_range.split("-"))
        for code_range in ranges.split()
    )


def _start_and_end(
    vocabulary: Mapping[str, int], start: str, end: str
) -> processors.TemplateProcessing:
    """The post-processor that puts a start and an end token around a text."""
    return processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )


def _mend(text: str) -> str:
    """Undo broken encodings and HTML entities (escaped once or twice)."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text  # nothing to mend; most descriptions, and the mending is what takes time
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _clean_whitespace(text: str) -> str:
    """Mend, and make every run of white space one space."""
    return " ".join(_mend(text).split())


def _clean_lower(text: str) -> str:
    """Mend, one space, lower case: what CLIP was trained with."""
    return _clean_whitespace(text).lower()


def _clean_canonicalize(text: str) -> str:
    """Mend, drop ASCII punctuation (`_` becomes a space), lower case, one space."""
    text = _mend(text).strip().replace("_", " ").translate(_NO_PUNCTUATION)
    return " ".join(text.lower().split())


_CLEANERS: dict[str, Callable[[str], str]] = {
    "lower": _clean_lower,
    "whitespace": _clean_whitespace,
    "canonicalize": _clean_canonicalize,
}
