"""The API key of a description server: read from the environment, and searched for, whole or in
long parts, in what the server sends.

Searched for are runs of 12 of the key's letters and digits: plain, in hexadecimal,
percent-encoded, and in base64 at its three alignments. Case, white space and punctuation are
ignored, so that a key split over lines or spelled with dashes is found. A key in another encoding,
or spread over the text in shorter parts, is not detected.

A key of fewer than 16 letters and digits is a placeholder for a local server (`lm-studio`,
`not-needed`, `sk-no-key-required`), not a secret: services issue longer ones. Good descriptions may
contain its words, so texts are not searched for it; messages mask it where it occurs in full.
"""

from __future__ import annotations

import base64
import os
import unicodedata
from urllib.parse import unquote

from lattec_jax.runtime.errors import EngineError

_RUN = 12  # letters and digits that count as a long part of the key
_MIN_SECRET = 16  # letters and digits; a shorter key is a placeholder
MASK = "***"


def read_api_key(variable: str) -> str:
    """Return the key in an environment variable, or "" without one; raise EngineError if it cannot
    be sent."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise EngineError(
            f"the environment variable {variable} (config.descriptions.openai.key_variable) "
            "contains characters that no key has; expected printable ASCII. Set it again"
        )
    return key


class KeyFilter:
    """Searches for one key, which may be empty."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._runs: dict[int, set[str]] = {}  # length -> substrings of the key and of its encodings
        plain = _letters(key)[0]
        if len(plain) < _MIN_SECRET:
            return
        data = key.encode()
        self._add(plain, _RUN)
        self._add(data.hex(), 2 * _RUN)
        for shift in range(3):
            encoded = base64.b64encode(bytes(shift) + data).decode()
            # The first and last characters depend on what precedes and follows the key.
            self._add(_letters(encoded[4 * (shift > 0) : -4])[0], 4 * _RUN // 3)

    def _add(self, encoded: str, run: int) -> None:
        run = min(run, len(encoded))
        runs = {encoded[i : i + run] for i in range(len(encoded) - run + 1)}
        self._runs.setdefault(run, set()).update(runs - {""})

    def contains_key(self, text: str) -> bool:
        """Return whether the text contains a long part of the key; False for a placeholder."""
        return bool(self._spans(text) or self._spans(unquote(text)))

    def mask(self, text: str) -> str:
        """Replace the key and its long parts by `MASK`."""
        if self._key:
            text = text.replace(self._key, MASK)
        if self._spans(unquote(text)):
            text = unquote(text)
        for start, stop in reversed(self._spans(text)):
            text = text[:start] + MASK + text[stop:]
        return text

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Return the start and end of the key's runs in the text, in order, merged if adjacent."""
        if not self._runs:
            return []
        letters, positions = _letters(text)
        hits = sorted(
            (i, i + length)
            for length, runs in self._runs.items()
            for i in range(len(letters) - length + 1)
            if letters[i : i + length] in runs
        )
        spans: list[tuple[int, int]] = []
        for first, last in hits:
            start, stop = positions[first], positions[last - 1] + 1
            if spans and start <= spans[-1][1]:
                start, stop = spans[-1][0], max(stop, spans.pop()[1])
            spans.append((start, stop))
        return spans


def _letters(text: str) -> tuple[str, list[int]]:
    """Return the text's letters and digits, case-folded, and the position of each in the text."""
    letters, positions = [], []
    for position, character in enumerate(text):
        folded = character
        if not character.isascii():
            folded = unicodedata.normalize("NFKC", character)
        for letter in folded.casefold():
            if letter.isalnum():
                letters.append(letter)
                positions.append(position)
    return "".join(letters), positions
