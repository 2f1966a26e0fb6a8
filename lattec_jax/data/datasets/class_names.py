"""Class names: each line of a file names one class, "automobile | car", its display name first.

Names are compared without regard to case, and "_" counts as a space (`key`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from lattec_jax.runtime.errors import DataError, short_repr
from lattec_jax.runtime.text import INVALID

NamesByClass = Sequence[tuple[str, ...]]  # all names of each class, the display name first


def key(name: str) -> str:
    """Return the form of a class name by which names are compared."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").split())


def parse(lines: Sequence[str], path: Path) -> list[tuple[str, ...]]:
    """Parse the lines of a file of class names, ignoring empty lines at its end.

    Raise DataError for a name that is empty or has control characters.
    """
    lines = list(lines)
    while lines and not lines[-1]:
        lines.pop()
    names_by_class = [tuple(name.strip() for name in line.split("|")) for line in lines]
    for number, names in enumerate(names_by_class, 1):
        if "" in names:
            raise DataError(
                f"{path}, line {number}: expected a class name, found nothing"
                + (f" beside a '|' in {short_repr(lines[number - 1])}" if len(names) > 1 else "")
                + "; remove it"
            )
        for name in names:
            check_characters(name, f"{path}, line {number}")
    return names_by_class


def check_characters(name: str, where: str) -> None:
    """Raise DataError if a class name has control characters or lone surrogates."""
    for character in INVALID.findall(name):
        if character != "\t":
            raise DataError(
                f"{where}: expected a class name without control characters, found "
                f"U+{ord(character):04X} in {short_repr(name)}; remove it"
            )


def check(names_by_class: NamesByClass, where: str, advice: str) -> None:
    """Raise DataError for a repeated name, or (with `advice`) for fewer than two classes."""
    seen: dict[str, str] = {}
    for name in (name for names in names_by_class for name in names):
        if key(name) in seen:
            same = f"{seen[key(name)]!r} and {name!r} are the same name (case and '_' do not count)"
            if seen[key(name)] == name:
                same = f"{name!r} is there twice"
            raise DataError(f"class names in {where}: {same}; remove one")
        seen[key(name)] = name
    if len(names_by_class) < 2:
        raise DataError(
            f"expected at least two class names in {where}, found {len(names_by_class)}: "
            f"{', '.join(names[0] for names in names_by_class) or 'none'}. {advice}"
        )


def labels_by_key(names_by_class: NamesByClass) -> dict[str, int]:
    """Return the label of each name, by its `key`."""
    return {key(name): label for label, names in enumerate(names_by_class) for name in names}


def for_template(name: str, name_spaces: str) -> str:
    """Return a class name of a public set as it is put into a template: lower case, with spaces,
    also for the characters `config.dataset.name_spaces`."""
    return " ".join("".join(" " if c in name_spaces else c for c in name.lower()).split())
