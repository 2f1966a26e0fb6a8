"""Text to token ids: the tokenizer of a checkpoint directory, with all its rules in one file.

A text is first cleaned in Python, as open_clip does it (`cleaning`). Every other rule is in
`tokenizer.json`, which the `tokenizers` library reads. `Tokenizer` is CLIP's kind (`clip_bpe`,
`word_level`), `HubTokenizer` that of the Hugging Face hub. Imports neither JAX nor torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import tokenizers
from annotated_types import MaxLen
from tokenizers import processors

from lattec_jax.data.text.cleaning import CLEANERS
from lattec_jax.data.text.tokenizer_rules import MAX_TOKEN_IDS, ContextLength, TokenId, check_rules
from lattec_jax.runtime.errors import WeightsError, short_repr
from lattec_jax.runtime.rust_errors import rust_errors
from lattec_jax.runtime.safe_read import parse_json, read_text
from lattec_jax.runtime.validation import STRICT, validate

FILE_NAME = "tokenizer.json"
MAX_FILE_BYTES = 2**27  # a vocabulary of a million tokens takes half of it
_BATCH = 20_000  # texts; the library returns 3 KB per text
_SAMPLE = "A photo of 2 cats, it's naïve."


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What is stored in config.json, beside the rules in tokenizer.json."""

    __pydantic_config__ = STRICT
    clean: Literal["lower", "whitespace", "canonicalize"]
    context_length: ContextLength
    pad_id: TokenId


@dataclasses.dataclass(frozen=True)
class _HubSettings(_Settings):
    hf_name: Annotated[str, MaxLen(200)]
    zeroed_id: TokenId | None


class Tokenizer:
    """Encodes texts as a matrix of token ids.

    Each row is: start token, tokens of the text, end token, padding. Too long a text is truncated
    before the end token, which the text tower pools.
    """

    _settings: ClassVar[type[_Settings]] = _Settings

    def __init__(
        self, backend: tokenizers.Tokenizer, context_length: int, pad_id: int, clean: str
    ) -> None:
        """Wrap a `tokenizers` tokenizer whose post-processor adds a start and an end token."""
        if not isinstance(clean, str) or clean not in CLEANERS:
            raise WeightsError(
                f"the tokenizer's text cleaning is {short_repr(clean)}; expected one of "
                f"{', '.join(sorted(CLEANERS))}"
            )
        self.context_length = context_length
        self.pad_id = pad_id
        self.clean = clean
        self._backend = backend
        self._clean = CLEANERS[clean]
        with rust_errors("the tokenizer"):
            largest = largest_token_id(backend)
            backend.no_padding()  # the file may set any length
            backend.no_truncation()
            empty = backend.encode("").ids
            self._set_special_tokens(empty)
            backend.encode(_SAMPLE)  # rules that cannot be applied fail here, not in a run
        self.vocab_size = max(largest, pad_id, *empty) + 1  # the largest token id plus 1

    def _set_special_tokens(self, empty: list[int]) -> None:
        """Set start and end token from the encoding of the empty text."""
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
        # If a text contains one of these literally, open_clip encodes it as that token.
        names = {self._backend.id_to_token(i): i for i in empty}
        self._special = {name: i for name, i in names.items() if name}

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Encode N texts as `[N, context_length]` int32."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        for start in range(0, len(texts), _BATCH):
            part = slice(start, start + _BATCH)
            self._fill(tokens[part], [self._clean(text) for text in texts[part]])
        return tokens

    def _fill(self, tokens: np.ndarray, texts: list[str]) -> None:
        """Write the tokens of cleaned texts into `[N, context_length]` of padding."""
        with rust_errors("a text, by the tokenizer's rules,", hold_stderr=False):
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
            ids = [encoding.ids for encoding in encodings]
            for row, text in enumerate(texts):
                if any(token in text for token in self._special):
                    ids[row] = self._encode_with_special_tokens(text)
        capacity = self.context_length - 2
        lengths = np.fromiter((min(len(row), capacity) for row in ids), np.int32, len(ids))
        tokens[:, 0] = self.start_id
        # One assignment for all texts: the mask is True at the first `length` columns of each row,
        # and the ids of all texts are concatenated in row order.
        columns = np.arange(1, self.context_length)
        tokens[:, 1:][columns <= lengths[:, None]] = np.fromiter(
            chain.from_iterable(row[:capacity] for row in ids), np.int32, int(lengths.sum())
        )
        tokens[np.arange(len(ids)), lengths + 1] = self.end_id

    def open_clip_settings(self) -> dict[str, Any]:
        """Return the entries of open_clip's `text_cfg` for this tokenizer."""
        return {} if self.clean == "lower" else {"tokenizer_kwargs": {"clean": self.clean}}

    def to_json(self) -> str:
        """Return the content of `tokenizer.json`."""
        return self._backend.to_str()

    def settings(self) -> dict[str, Any]:
        """Return the JSON values that `load` needs besides `tokenizer.json`."""
        return {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self._settings)
        }

    def save(self, directory: Path) -> dict[str, Any]:
        """Write `tokenizer.json`; return `settings`."""
        self._backend.save(str(directory / FILE_NAME))
        return self.settings()

    @classmethod
    def load(cls, directory: Path, settings: Mapping[str, Any], where: str = "") -> Tokenizer:
        """Read the tokenizer that `save` wrote.

        Raise WeightsError if the file is missing, too large or damaged, or has unsupported rules,
        or if the settings are invalid.

        Args:
            settings: the return value of `save`.
            where: origin of the settings, for messages.
        """
        path = directory / FILE_NAME
        kind = HubTokenizer if "hf_name" in settings else Tokenizer
        advice = "convert the weights again"
        where = where or f"the tokenizer settings of {directory}"
        read = validate(kind._settings, dict(settings), where, WeightsError, advice)
        try:
            text = read_text(path, MAX_FILE_BYTES)
            parse_json(text)  # refuses deep nesting, on which the library would overflow its stack
        except (FileNotFoundError, NotADirectoryError) as error:
            raise WeightsError(f"expected the tokenizer in {path}, found no such file") from error
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise WeightsError(f"the tokenizer in {path} is not JSON: {error}") from error
        check_rules(text, f"the tokenizer in {path}")
        with rust_errors(f"the tokenizer in {path}"):
            backend = tokenizers.Tokenizer.from_str(text)
        # Without them a text is not split into words, or gets no start and end token.
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
        """Encode a cleaned text that contains the start or the end token literally.

        The merges would split such a word, and the "added tokens" of the library would also match
        it inside other punctuation, where open_clip does not.
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

    `tokenizer.json` defines which special tokens surround a text (BERT's `[CLS]` and `[SEP]`,
    XLM-R's `<s>` and `</s>`, T5's `</s>` alone) and which are recognized inside it. Too long a text
    is truncated so that the surrounding ones remain.
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
        """Wrap the backend of a tokenizer of transformers, whose name on the hub exports need.

        `zeroed_id` is the separator that open_clip's `strip_sep_token` replaces by 0, or None.
        """
        self.hf_name, self.zeroed_id = hf_name, zeroed_id
        super().__init__(backend, context_length, pad_id, clean)
        backend.enable_truncation(context_length)

    def _set_special_tokens(self, empty: list[int]) -> None:
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
        """Return the entries of open_clip's `text_cfg` for this tokenizer."""
        settings: dict[str, Any] = {} if self.clean == "whitespace" else {"clean": self.clean}
        if self.zeroed_id is not None:
            settings["strip_sep_token"] = True
        return {"hf_tokenizer_name": self.hf_name, "tokenizer_kwargs": settings}

    def transformers_files(self) -> dict[str, str]:
        """Return names and contents of the files from which transformers loads this tokenizer."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": self._backend.id_to_token(self.pad_id),
        }
        if self.zeroed_id is not None:
            settings["sep_token"] = self._backend.id_to_token(self.zeroed_id)
        config = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        return {FILE_NAME: self._backend.to_str(), "tokenizer_config.json": config}


def largest_token_id(backend: tokenizers.Tokenizer) -> int:
    """Return the largest id in the vocabulary; refuse a huge one: the library loops up to it."""
    largest = max(backend.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= MAX_TOKEN_IDS:
        raise WeightsError(
            f"expected token ids below {MAX_TOKEN_IDS}, found {largest} in the tokenizer; it is "
            "damaged"
        )
    return largest


def start_and_end(
    vocabulary: Mapping[str, int], start: str, end: str
) -> processors.TemplateProcessing:
    """Return the post-processor that adds a start and an end token to a text."""
    return processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
