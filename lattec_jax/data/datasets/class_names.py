"""Class names: a line of their file holds one class, "automobile | car", its display name first.

Names are compared without regard to case, and with "_" as a space.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from lattec_jax.runtime.errors import DataError, short_repr
from lattec_jax.runtime.text import INVALID

Names = Sequence[tuple[str, ...]]  # of each class


def key(name: str) -> str:
    """What two spellings of a class name have in common."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").split())


def parse(lines: Sequence[str], path: Path) -> list[tuple[str, ...]]:
    """The names of each class, one class a line. Empty lines at the end do not count.

    Raises:
        DataError: a name is empty or has control characters.
    """
    lines = list(lines)
    while lines and not lines[-1]:
        lines.pop()
    names = [tuple(name.strip() for name in line.split("|")) for line in lines]
    for number, own in enumerate(names, 1):
        if "" in own:
            raise DataError(
                f"{path}, line {number}: expected a class name, found nothing"
                + (f" beside a '|' in {short_repr(lines[number - 1])}" if len(own) > 1 else "")
            )
        for name in own:
            check_characters(name, f"{path}, line {number}")
    return names


def check_characters(name: str, where: str) -> None:
    """Raise DataError for control characters and lone surrogates, which no class name has."""
    for character in INVALID.findall(name):
        if character != "\t":
            raise DataError(
                f"{where}: expected a class name without control characters, found "
                f"U+{ord(character):04X} in {short_repr(name)}; remove it"
            )


def check(names: Names, where: str, advice: str) -> None:
    """Raise DataError for fewer than two classes (with `advice`) or a name that is there twice."""
    seen: dict[str, str] = {}
    for name in (name for own in names for name in own):
        if key(name) in seen:
            raise DataError(
                f"class names in {where}: {seen[key(name)]!r} and {name!r} are the same name "
                "(case and '_' do not count); keep one"
            )
        seen[key(name)] = name
    if len(names) < 2:
        raise DataError(
            f"expected at least two class names in {where}, found {len(names)}: "
            f"{', '.join(own[0] for own in names) or 'none'}. {advice}"
        )


def labels_by_key(names: Names) -> dict[str, int]:
    """The label of each name, by its key."""
    return {key(name): label for label, own in enumerate(names) for name in own}


def spoken(name: str, spaces: str) -> str:
    """A class name of a public set as a template takes it: lower-cased, with spaces.

    Args:
        name: as the set spells it.
        spaces: the characters that stand for a space in it.
    """
    return " ".join("".join(" " if c in spaces else c for c in name.lower()).split())
