"""Match the answer of a language model to a class, for LLaVA zero-shot.

The paper does not state its rule. Here every name of a class is accepted, and the first step that
finds a class decides:

1. exact: the answer, stripped, is a class name.
2. normalized: the same, ignoring case and with "_" as a space; otherwise, exactly one class is
   named by full words in the answer. Words are lower-case runs of letters and digits: punctuation,
   "_" and "-" separate them, and apostrophes, the articles a, an and the, and the final "s" (not of
   "ss") of words of more than three letters are dropped. A name inside a longer name is ignored:
   "a wild cat" matches "wild cat", not "cat".
3. closest: the one class whose normalized name has the highest `difflib` ratio to the normalized
   answer, if that is at least 0.6 (`CUTOFF`).
4. unmatched: none of these; counted as wrong. If two classes tie in any step, the answer is
   unmatched, and later steps are skipped.

In scripts without spaces between words, a name matches only as the full answer.

Time is bounded for long answers: an answer of more than 4,000 characters (`MAX_CHARS`) is
unmatched, and step 3 is skipped for more than 1,000 (`MAX_CLOSEST_CHARS`), which are not close to a
name of usual length.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from lattec_jax.data.datasets import class_names

EXACT, NORMALIZED, CLOSEST, UNMATCHED = "exact", "normalized", "closest", "unmatched"
CUTOFF = 0.6  # the default of `difflib.get_close_matches`
MAX_CHARS, MAX_CLOSEST_CHARS = 4000, 1000
_ARTICLES = {"a", "an", "the"}


class Match(NamedTuple):
    """The class of an answer and the step that found it."""

    label: int | None  # None: unmatched
    how: str


class AnswerMatcher:
    """Matches answers to classes, each of which may have several names."""

    def __init__(self, names: class_names.NamesByClass) -> None:
        self._exact: dict[str, set[int]] = {}
        self._keys: dict[str, set[int]] = {}
        self._words: dict[tuple[str, ...], set[int]] = {}
        for label, label_names in enumerate(names):
            for name in label_names:
                self._exact.setdefault(name.strip(), set()).add(label)
                self._keys.setdefault(class_names.key(name), set()).add(label)
                if found := normalized_words(name):
                    self._words.setdefault(found, set()).add(label)
        self._lengths = sorted(set(map(len, self._words)), reverse=True)
        self._matches: dict[str, Match] = {}  # many images have the same answer

    def __call__(self, answer: str) -> Match:
        """Return the class, by the rule of this module."""
        if len(answer) > MAX_CHARS:
            return Match(None, UNMATCHED)
        if answer not in self._matches:
            self._matches[answer] = self._match(answer)
        return self._matches[answer]

    def _match(self, answer: str) -> Match:
        for how, labels in self._steps(answer):
            if len(labels) == 1:
                return Match(next(iter(labels)), how)
            if labels:
                break
        return Match(None, UNMATCHED)

    def _steps(self, answer: str) -> Iterator[tuple[str, set[int]]]:
        """Yield the classes that each step finds; lazily, as the last one is slow."""
        yield EXACT, self._exact.get(answer.strip(), set())
        yield NORMALIZED, self._keys.get(class_names.key(answer), set())
        words = normalized_words(answer)
        yield NORMALIZED, self._named(words)
        yield CLOSEST, self._closest(words)

    def _named(self, words: tuple[str, ...]) -> set[int]:
        """Return the classes named in the answer, ignoring names inside longer ones."""
        found: set[int] = set()
        reach = 0  # end of the names that begin further left
        for start in range(len(words)):
            for length in self._lengths:
                stop = start + length
                if reach < stop <= len(words) and words[start:stop] in self._words:
                    found |= self._words[words[start:stop]]
                    reach = stop
                    break
        return found

    def _closest(self, words: tuple[str, ...]) -> set[int]:
        """Return the classes with the best ratio, if it reaches the cutoff."""
        answer = " ".join(words)
        if len(answer) > MAX_CLOSEST_CHARS:
            return set()
        matcher = difflib.SequenceMatcher(autojunk=False)
        matcher.set_seq2(answer)
        best, labels = CUTOFF, set()
        for name, classes in self._words.items():
            matcher.set_seq1(" ".join(name))
            # Upper bounds of the ratio: most pairs need no alignment.
            if matcher.real_quick_ratio() < best or matcher.quick_ratio() < best:
                continue
            ratio = matcher.ratio()
            if ratio > best:
                best, labels = ratio, set(classes)
            elif ratio == best:
                labels |= classes
        return labels


def normalized_words(text: str) -> tuple[str, ...]:
    """Return the normalized words; articles remain if there is nothing else, as in a class "A"."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    folded = folded.replace("'", "").replace("’", "")
    # Letters (L), combining marks (M), with which many scripts write vowels, and numbers (N).
    found = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split()
    return tuple(map(_singular, [word for word in found if word not in _ARTICLES] or found))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word
