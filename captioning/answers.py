"""From what a language model says to a class: the rule of LLaVA zero-shot.

The paper does not say how it reads an answer. Here, all names of a class count, and the first step
that finds a class decides:

1. exact: the answer, stripped, is a class name.
2. normalized: the same without regard to case, with "_" as a space; or else exactly one class is
   named in the answer by whole words. Words are runs of letters and digits in lower case: all
   punctuation, "_" and "-" are spaces, apostrophes are dropped, and so are the articles a, an and
   the, and the final "s" of words of more than three letters (not of "ss"). A name inside of a
   longer name does not count: the longest wins, so that "a wild cat" is no "cat".
3. closest: the one class whose normalized name has the greatest `difflib` ratio to the normalized
   answer, of at least 0.6 (`CUTOFF`).
4. unmatched: none of these, which counts as wrong. Where two classes tie, in any step, the answer
   is unmatched, and no later step is tried.

In scripts that put no spaces between words, a name is found where it is the whole answer.

A long answer costs no more than a bounded one: it is unmatched if it has more than 4,000
characters (`MAX_CHARS`), and step 3 is not tried for more than 1,000 (`MAX_CLOSEST_CHARS`), which
no name of usual length is close to.
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

Words = tuple[str, ...]


class Match(NamedTuple):
    """The class of an answer and the step that found it."""

    label: int | None
    how: str


class Matcher:
    """Finds the class that an answer means."""

    def __init__(self, names: class_names.NamesByClass) -> None:
        """`names`: of each class."""
        self._exact: dict[str, set[int]] = {}
        self._keys: dict[str, set[int]] = {}
        self._words: dict[Words, set[int]] = {}
        for label, own in enumerate(names):
            for name in own:
                self._exact.setdefault(name.strip(), set()).add(label)
                self._keys.setdefault(class_names.key(name), set()).add(label)
                if found := words(name):
                    self._words.setdefault(found, set()).add(label)
        self._lengths = sorted(set(map(len, self._words)), reverse=True)
        self._known: dict[str, Match] = {}  # a set has many images and few different answers

    def __call__(self, answer: str) -> Match:
        """The class, by the rule at the top."""
        if len(answer) > MAX_CHARS:
            return Match(None, UNMATCHED)
        if answer not in self._known:
            self._known[answer] = self._match(answer)
        return self._known[answer]

    def _match(self, answer: str) -> Match:
        for how, labels in self._steps(answer):
            if len(labels) == 1:
                return Match(next(iter(labels)), how)
            if labels:
                break
        return Match(None, UNMATCHED)

    def _steps(self, answer: str) -> Iterator[tuple[str, set[int]]]:
        """The classes that each step finds; the costly last one only where it is wanted."""
        yield EXACT, self._exact.get(answer.strip(), set())
        yield NORMALIZED, self._keys.get(class_names.key(answer), set())
        said = words(answer)
        yield NORMALIZED, self._named(said)
        yield CLOSEST, self._closest(said)

    def _named(self, said: Words) -> set[int]:
        """The classes of the names in the answer, but for those inside of longer ones."""
        found: set[int] = set()
        reach = 0  # where the names end that begin further left
        for start in range(len(said)):
            for length in self._lengths:
                stop = start + length
                if reach < stop <= len(said) and said[start:stop] in self._words:
                    found |= self._words[said[start:stop]]
                    reach = stop
                    break
        return found

    def _closest(self, said: Words) -> set[int]:
        """The classes of the best ratio, if it reaches the cut-off."""
        answer = " ".join(said)
        if len(answer) > MAX_CLOSEST_CHARS:
            return set()
        matcher = difflib.SequenceMatcher(autojunk=False)
        matcher.set_seq2(answer)
        best, labels = CUTOFF, set()
        for name, own in self._words.items():
            matcher.set_seq1(" ".join(name))
            # Bounds from above: most pairs need no alignment.
            if matcher.real_quick_ratio() < best or matcher.quick_ratio() < best:
                continue
            ratio = matcher.ratio()
            if ratio > best:
                best, labels = ratio, set(own)
            elif ratio == best:
                labels |= own
        return labels


def words(text: str) -> Words:
    """Normalized words; the articles stay where there is nothing else, as in a class "A"."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    folded = folded.replace("'", "").replace("’", "")
    # Letters, the marks that many scripts write vowels with, and numbers.
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split()
    return tuple(map(_singular, [word for word in kept if word not in _ARTICLES] or kept))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word
