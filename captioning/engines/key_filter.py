"""Find the API key, or a long part of it, in what a server says.

Searched for are runs of 12 of the key's letters and digits: as they are, in hexadecimal and
percent-encoded, and in base64 at its three alignments. Case, white space and punctuation do not
count, so that a key which is split over lines or spelled with dashes is found. A server that
encodes the key in another way, or spreads shorter pieces of it over the text, is not detected.

A key of fewer than 16 letters and digits is a placeholder of a local server (`lm-studio`,
`not-needed`, `sk-no-key-required`), not a secret: services issue longer ones. Its words occur in
good descriptions, so texts may contain it; messages show it masked where it stands whole.
"""

from __future__ import annotations

import base64
import unicodedata
from urllib.parse import unquote

_RUN = 12  # letters and digits of the key that are a long part of it
_MIN_SECRET = 16  # letters and digits; a shorter key is a placeholder
MASK = "***"


class KeyFilter:
    """Knows one key, which may be empty."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._runs: dict[int, set[str]] = {}  # length -> runs of the key and of its encodings
        plain = _letters(key)[0]
        if len(plain) < _MIN_SECRET:
            return
        data = key.encode()
        self._add(plain, _RUN)
        self._add(data.hex(), 2 * _RUN)
        for shift in range(3):
            encoded = base64.b64encode(bytes(shift) + data).decode()
            # The first and last characters depend on what stands before and after the key.
            self._add(_letters(encoded[4 * (shift > 0) : -4])[0], 4 * _RUN // 3)

    def _add(self, encoded: str, run: int) -> None:
        run = min(run, len(encoded))
        runs = {encoded[i : i + run] for i in range(len(encoded) - run + 1)}
        self._runs.setdefault(run, set()).update(runs - {""})

    def found(self, text: str) -> bool:
        """Whether the text contains the key or a long part of it; never where it is no secret."""
        return bool(self._spans(text) or self._spans(unquote(text)))

    def masked(self, text: str) -> str:
        """The text with `MASK` in the place of the key and of its long parts."""
        if self._key:
            text = text.replace(self._key, MASK)
        if self._spans(unquote(text)):
            text = unquote(text)
        for start, stop in reversed(self._spans(text)):
            text = text[:start] + MASK + text[stop:]
        return text

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where the key's runs are, in order and apart from each other."""
        if not self._runs:
            return []
        letters, places = _letters(text)
        hits = sorted(
            (i, i + length)
            for length, runs in self._runs.items()
            for i in range(len(letters) - length + 1)
            if letters[i : i + length] in runs
        )
        spans: list[tuple[int, int]] = []
        for first, last in hits:
            start, stop = places[first], places[last - 1] + 1
            if spans and start <= spans[-1][1]:
                start, stop = spans[-1][0], max(stop, spans.pop()[1])
            spans.append((start, stop))
        return spans


def _letters(text: str) -> tuple[str, list[int]]:
    """Letters and digits without regard to case, and the place in the text of each."""
    found, places = [], []
    for place, character in enumerate(text):
        folded = character
        if not character.isascii():
            folded = unicodedata.normalize("NFKC", character)
        for letter in folded.casefold():
            if letter.isalnum():
                found.append(letter)
                places.append(place)
    return "".join(found), places
