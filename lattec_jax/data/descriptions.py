"""The file between captioning and training: one JSON object a line.

    {"image": id, "kind": "image" | "group" | ..., "text": str, "engine": str, "model": str,
     "prompt": str, "decoding": str, "members": [ids], "note": str, "key": str, "error": str}

Only the first three are needed, so that any captioner can write the file. "members" is of groups
only, "note" of an analysis, "error" says why there is no text. "key" (`description_key`) covers all
that the text depends on, the images' content included; the captioning stage writes it.

The rule for reading: of several records of one image and kind the last wins; a missing text takes
no part in its image's mix (its weight is 0). An empty text counts as missing, and so does one whose
key says that its images have changed or whose prompt is no longer the configured one. Records of
unknown images are counted and ignored; texts of different engines, models or decoding are never
mixed; a kind without any text for the given images is an error; so is a malformed line, except that
a last line which was cut off while being written is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lattec_jax.runtime import safe_read
from lattec_jax.runtime.config import artifacts_dir
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.text import sanitize

log = logging.getLogger(__name__)
# The choices of `config.descriptions.group_members`, with what they add to a file's name.
GROUP_SUFFIXES = {"with_image": "", "drawn": "-drawn"}
# By config.descriptions.correct_label: what an image's true label is compared with to count as
# correct in a group (Table 4).
CORRECT_LABELS = {"pseudo": "the image's pseudo-label", "true": "the image's own true label"}
_REPEATED = ("kind", "engine", "model", "prompt", "decoding", "note")
# Made valid Unicode where they are read. Ids name files, and the others are covered by the key:
# these stay as they are.
_SHOWN = ("text", "note", "error")


class Record(NamedTuple):
    """One line of the file."""

    image: str
    kind: str
    text: str
    engine: str = ""
    model: str = ""
    prompt: str = ""
    decoding: str = ""
    members: tuple[str, ...] = ()  # of a group, in the order of the collage
    note: str = ""  # says that an analysis, not the method, made it
    key: str = ""
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Descriptions:
    """The texts of N images, in the order of the ids that were asked for."""

    kinds: tuple[str, ...]
    texts: dict[str, list[str | None]]  # kind -> N texts, None where there is none
    # kind -> {"found": images with a text, "missing": without, and of these "empty": with an empty
    # text, "changed": whose images changed, "other_prompt": with a text for another prompt;
    # "duplicate": records that a later one replaces, "unknown_image": records}
    counts: dict[str, dict[str, int]]
    sha256: str  # of the files' contents, one after the other
    notes: tuple[str, ...] = ()  # of analyses


def is_group(kind: str) -> bool:
    """Whether a kind of description is of several images together."""
    return kind.startswith("group")


def descriptions_path(config: ConfigDict, kind: str) -> Path:
    """`<artifacts>/<dataset>/descriptions/<engine>-<kind>.jsonl`; of groups with their size and how
    their members are chosen.

    In the analysis of Table 4 the name has the number of correct images and, where correct means
    the image's own true label, says so.
    """
    settings = config.descriptions
    name = f"{settings.engine}-{kind}"
    if is_group(kind):
        name += f"-of-{settings.group_size}"
        if settings.correct_per_group is not None:
            name += f"-{settings.correct_per_group}-correct"
            name += "-by-true-label" if settings.correct_label == "true" else ""
        else:
            name += GROUP_SUFFIXES[settings.group_members]
    return artifacts_dir(config) / "descriptions" / f"{name}.jsonl"


def description_key(
    kind: str, prompt: str, engine: str, model: str, decoding: str, contents: Sequence[str]
) -> str:
    """What tells whether a description may be used again: 32 hexadecimal digits.

    Args:
        kind: of description.
        prompt: as the model sees it.
        engine: that answers.
        model: of the engine.
        decoding: of the engine.
        contents: SHA-256 of each image's file, in order.
    """
    text = json.dumps([kind, prompt, engine, model, decoding, *contents])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def key_of(record: Record, contents: Sequence[str]) -> str:
    """The key that a record has if it is of images with these contents."""
    source = (record.prompt, record.engine, record.model, record.decoding)
    return description_key(record.kind, *source, contents)


def to_line(record: Record) -> bytes:
    """A record as it stands in the file, line break included."""
    values = {name: value for name, value in record._asdict().items() if value}
    values |= {"text": record.text}
    order = {name: values[name] for name in Record._fields if name in values}
    # Names that are not UTF-8 keep their bytes as escapes.
    text = json.dumps(order, ensure_ascii=False)
    try:
        return (text + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(order) + "\n").encode()


def records(path: Path) -> Iterator[Record]:
    """The records of a file, in its order.

    Raises:
        DataError: there is no such file, or a line is malformed.
    """
    with _opened(path) as file:
        for _, record in lines(file, path):
            if record is not None:
                yield record


@dataclasses.dataclass(frozen=True)
class Expected:
    """What descriptions of the configured set look like now, so that old ones are noticed."""

    contents: Sequence[str]  # SHA-256 of the N images' files
    prompts: Mapping[str, Sequence[str]]  # kind -> N prompts


def read(
    paths: Sequence[str | os.PathLike[str]],
    kinds: Sequence[str],
    image_ids: Sequence[str],
    expected: Expected | None = None,
) -> Descriptions:
    """Join the descriptions in `paths` with N images by id, by the rule at the top.

    Args:
        paths: of files.
        kinds: that are wanted; records of others are skipped.
        image_ids: the N images.
        expected: tells which records with a key are out of date; None: none is.

    Raises:
        DataError: a file is missing or malformed, a kind has no text for any of the images, or its
            texts come from different engines, models or decoding.
    """
    rows = {image: row for row, image in enumerate(image_ids)}
    newest: dict[str, list[Record | None]] = {kind: [None] * len(rows) for kind in kinds}
    names = ("found", "missing", "empty", "changed", "other_prompt", "duplicate", "unknown_image")
    counts = {kind: dict.fromkeys(names, 0) for kind in kinds}
    digest = hashlib.sha256()
    for path in map(Path, paths):
        with _opened(path) as file:
            for _, record in lines(file, path, digest):
                if record is None or record.kind not in counts:
                    continue
                row = rows.get(record.image)
                if row is None:
                    counts[record.kind]["unknown_image"] += 1
                    continue
                if newest[record.kind][row] is not None:
                    counts[record.kind]["duplicate"] += 1
                newest[record.kind][row] = record
    texts = {}
    for kind in kinds:
        texts[kind] = _usable(kind, newest[kind], rows, expected, counts[kind])
        found = [r for r, t in zip(newest[kind], texts[kind], strict=True) if t is not None]
        counts[kind]["found"] = len(found)
        counts[kind]["missing"] = len(rows) - len(found)
        _check_kind(kind, paths, counts[kind], found)
    notes = {r.note: None for column in newest.values() for r in column if r is not None and r.note}
    return Descriptions(tuple(kinds), texts, counts, digest.hexdigest(), tuple(notes))


def _usable(
    kind: str,
    newest: Sequence[Record | None],
    rows: Mapping[str, int],
    expected: Expected | None,
    counts: dict[str, int],
) -> list[str | None]:
    """The texts that may be used; counts the others."""
    texts: list[str | None] = []
    strangers = []
    for row, record in enumerate(newest):
        text = record.text.strip() if record else None
        if record is not None:
            members = record.members or (record.image,)
            other = next((member for member in members if member not in rows), None)
            if other is not None:
                strangers.append((record.image, other))
            elif not text:
                counts["empty"] += 1
            elif expected and record.key:
                contents = [expected.contents[rows[member]] for member in members]
                if record.prompt != expected.prompts[kind][row]:
                    counts["other_prompt"] += 1
                    text = None
                elif key_of(record, contents) != record.key:
                    counts["changed"] += 1
                    text = None
        texts.append(text or None)
    if strangers:
        image, other = strangers[0]
        raise DataError(
            f"{len(strangers)} descriptions of groups have members that are not training images, "
            f"the first: the {kind} description of {image!r} with {other!r}; describe them again "
            "with python -m captioning.describe"
        )
    return texts


def shuffled(descriptions: Descriptions, seed: int) -> Descriptions:
    """The control experiment: each kind's texts permuted among all images.

    Every text keeps being used once, but for another image, so that what remains of the method's
    gain is not owed to what the descriptions say about their images. Each kind has its own
    permutation, which depends on the seed, the kind and the number of images alone.
    """
    texts = {}
    for kind, column in descriptions.texts.items():
        key = int.from_bytes(hashlib.sha256(kind.encode()).digest()[:8], "big")
        order = np.random.default_rng([seed, key]).permutation(len(column))
        texts[kind] = [column[i] for i in order]
    return dataclasses.replace(descriptions, texts=texts)


def _check_kind(
    kind: str,
    paths: Sequence[str | os.PathLike[str]],
    counts: dict[str, int],
    found: Sequence[Record],
) -> None:
    """Refuse a kind without texts, and one whose texts come from different sources."""
    where = ", ".join(map(str, paths)) or "no file"
    command = f"python -m captioning.describe --config=... --kind={kind}"
    if not found:
        raise DataError(
            f"no {kind!r} description for any of the {counts['missing']} images in {where} "
            f"({counts['unknown_image']} are of other images, {counts['empty']} empty, "
            f"{counts['changed']} of images that have changed, {counts['other_prompt']} for "
            f"another prompt); make them with {command}"
        )
    sources = Counter((r.engine, r.model, r.decoding) for r in found)
    if len(sources) > 1:
        listed = "; ".join(f"{n} of {' | '.join(s)}" for s, n in sources.most_common(4))
        raise DataError(
            f"the {kind} descriptions in {where} come from {len(sources)} different sources "
            f"({listed}); keep those of one, or describe again with {command}"
        )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = safe_read.open_regular(path)
    except FileNotFoundError as error:
        raise DataError(
            f"no descriptions at {path}; make them with python -m captioning.describe --config=..."
        ) from error
    except OSError as error:
        raise DataError(f"cannot read the descriptions {path}: {error.strerror}") from error
    with file:
        yield file


def lines(file: BinaryIO, path: Path, digest: Any = None) -> Iterator[tuple[bytes, Record | None]]:
    """Every whole line with its record (None: a blank line); a cut-off last line is left out."""
    file.seek(0)
    for number, line in enumerate(_bounded(file, path), 1):
        if digest is not None:
            digest.update(line)
        if line.isspace():
            yield line, None
            continue
        try:
            yield line, _record(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                log.warning("%s:%d: dropped a line that was cut off", path, number)
                return
            raise DataError(
                f"{path}:{number}: expected a JSON object with image, kind and text, found "
                f"{line[:80].decode(errors='replace').strip()!r} ({error}); repair or remove it"
            ) from error


def _bounded(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        yield from safe_read.bounded_lines(file)
    except ValueError as error:
        raise DataError(f"{path}: {error}; repair or remove it") from error


def _record(line: bytes) -> Record:
    """Parse one line. Raises ValueError."""
    values = safe_read.parse_json(line)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    members = values.get("members", [])
    if not isinstance(members, list) or not all(isinstance(m, str) for m in members):
        raise ValueError("members is not a list of ids")
    found = {"members": tuple(members)}
    for name in Record._fields:
        if name != "members":
            value = values.get(name, None if name in ("image", "kind", "text") else "")
            if not isinstance(value, str):
                raise ValueError(f"{name} is missing or not a string")
            if name in _SHOWN:
                value = sanitize(value)
            # The same few strings stand in every line.
            found[name] = sys.intern(value) if name in _REPEATED else value
    return Record(**found)
