"""Description files, which captioning writes and training reads: one JSON object per line.

    {"image": id, "kind": "image" | "group" | ..., "text": str, "engine": str, "model": str,
     "prompt": str, "decoding": str, "members": [ids], "note": str, "key": str, "error": str}

Only the first three are required, so that any captioner can write the file. "members" is for groups
only, "note" marks an analysis, "error" states why there is no text. "key" (`description_key`)
covers all that the text depends on, including the content of the images; captioning writes it.

Rules for reading: of several records of one image and kind, the last one is used. A missing text is
left out of its image's mix (its weight is 0). An empty text counts as missing, and so does one
whose images have changed since (by its key), or whose prompt is not the configured one any more.
Records of unknown images are counted and ignored. Errors are: texts of one kind from different
engines, models or decoding; a kind without any text for the given images; and a malformed line,
unless it is the last one and incomplete, which is dropped.
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
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lattec_jax.data.datasets.dataset import Dataset
from lattec_jax.data.pseudo_labels import PseudoLabels
from lattec_jax.runtime import safe_read
from lattec_jax.runtime.config import artifacts_dir
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.text import sanitize

log = logging.getLogger(__name__)
# `config.descriptions.group_members` -> suffix of the file name
GROUP_SUFFIXES = {"with_image": "", "drawn": "-drawn"}
# `config.descriptions.correct_label` -> what an image's true label is compared with, to count as
# correct in a group (Table 4)
CORRECT_LABELS = {"pseudo": "the image's pseudo-label", "true": "the image's own true label"}
_REPEATED = ("kind", "engine", "model", "prompt", "decoding", "note")
# Converted to valid Unicode when they are read. The other fields are file names, or are covered by
# the key.
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
    note: str = ""  # names the analysis that it was made for
    key: str = ""
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Descriptions:
    """The texts of N images, in the order of the requested ids."""

    kinds: tuple[str, ...]
    texts: dict[str, list[str | None]]  # kind -> N texts, None where missing
    # kind -> {"found": images with a text, "missing": images without, of which "empty": the text is
    # empty, "changed": the images changed, "other_prompt": the text is for another prompt;
    # "duplicate": records replaced by a later one, "unknown_image": records}
    counts: dict[str, dict[str, int]]
    sha256: str  # of the concatenated files
    notes: tuple[str, ...] = ()  # of analyses


def is_group(kind: str) -> bool:
    """Return whether descriptions of this kind are for several images together."""
    return kind.startswith("group")


def descriptions_path(config: ConfigDict, kind: str) -> Path:
    """Return `<artifacts>/<dataset>/descriptions/<engine>-<kind>.jsonl`.

    For groups, the name also states their size and how members are chosen; in the analysis of Table
    4 the number of correct images and which label is correct.
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
    """Return the cache key of a description, 32 hexadecimal digits, from the prompt as the model
    sees it, and the SHA-256 of each image file in order."""
    text = json.dumps([kind, prompt, engine, model, decoding, *contents])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def key_of(record: Record, contents: Sequence[str]) -> str:
    """Return the key of a record if its images have these contents."""
    source = (record.prompt, record.engine, record.model, record.decoding)
    return description_key(record.kind, *source, contents)


def to_line(record: Record) -> bytes:
    """Return a record as a line of the file."""
    values = {key: value for key, value in record._asdict().items() if value or key == "text"}
    try:
        return (json.dumps(values, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8 is written as escapes
        return (json.dumps(values) + "\n").encode()


def records(path: Path, digest: Any = None) -> Iterator[Record]:
    """Iterate over the records of a file. Raise DataError if it cannot be read, or for a bad line.

    Args:
        digest: a `hashlib` object that is updated with the content.
    """
    try:
        file = safe_read.open_regular(path)
    except FileNotFoundError as error:
        raise DataError(
            f"no descriptions at {path}; make them with python -m captioning.describe --config=..."
        ) from error
    except OSError as error:
        raise DataError(f"cannot read the descriptions {path}: {error.strerror}") from error
    with file:
        yield from (record for _, record in lines(file, path, digest) if record is not None)


class Sources(NamedTuple):
    """What descriptions are made from, for an engine that need not read it again."""

    dataset: Dataset
    contents: Mapping[str, str]  # training image -> SHA-256 of its file
    labels: PseudoLabels  # of the readable training images


@dataclasses.dataclass(frozen=True)
class Expected:
    """What up-to-date descriptions depend on, to detect outdated ones."""

    contents: Sequence[str]  # SHA-256 of the N image files
    prompts: Mapping[str, Sequence[str]]  # kind -> N prompts


def read(
    paths: Sequence[str | os.PathLike[str]],
    kinds: Sequence[str],
    image_ids: Sequence[str],
    expected: Expected | None = None,
) -> Descriptions:
    """Read the descriptions of N images, by the rules at the top of this file.

    Args:
        kinds: records of other kinds are skipped.
        expected: detects outdated records with a key; None: records are not checked.
    """
    index_of = {image: index for index, image in enumerate(image_ids)}
    latest: dict[str, list[Record | None]] = {kind: [None] * len(index_of) for kind in kinds}
    names = ("found", "missing", "empty", "changed", "other_prompt", "duplicate", "unknown_image")
    counts: dict[str, dict[str, int]] = {kind: dict.fromkeys(names, 0) for kind in kinds}
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for record in records(path, digest):
            if record.kind not in counts:
                continue
            index = index_of.get(record.image)
            if index is None:
                counts[record.kind]["unknown_image"] += 1
                continue
            if latest[record.kind][index] is not None:
                counts[record.kind]["duplicate"] += 1
            latest[record.kind][index] = record
    texts = {}
    for kind in kinds:
        texts[kind] = _usable_texts(kind, latest[kind], index_of, expected, counts[kind])
        pairs = zip(latest[kind], texts[kind], strict=True)
        found = [record for record, text in pairs if record is not None and text is not None]
        counts[kind]["found"] = len(found)
        counts[kind]["missing"] = len(index_of) - len(found)
        _check_kind(kind, paths, counts[kind], found)
    notes = dict.fromkeys(r.note for of_kind in latest.values() for r in of_kind if r and r.note)
    return Descriptions(tuple(kinds), texts, counts, digest.hexdigest(), tuple(notes))


def _usable_texts(
    kind: str,
    latest: Sequence[Record | None],
    index_of: Mapping[str, int],
    expected: Expected | None,
    counts: dict[str, int],
) -> list[str | None]:
    """Return the text of each image, None if it is missing or outdated, which is counted."""
    texts: list[str | None] = [None] * len(latest)
    unknown_members = []
    for index, record in enumerate(latest):
        if record is None:
            continue
        members = record.members or (record.image,)
        other = next((member for member in members if member not in index_of), None)
        if other is not None:
            unknown_members.append((record.image, other))
        elif not record.text.strip():
            counts["empty"] += 1
        elif expected and record.key and record.prompt != expected.prompts[kind][index]:
            counts["other_prompt"] += 1
        elif (
            expected
            and record.key
            and record.key != key_of(record, [expected.contents[index_of[m]] for m in members])
        ):
            counts["changed"] += 1
        else:
            texts[index] = record.text.strip()
    if unknown_members:
        image, other = unknown_members[0]
        raise DataError(
            f"{len(unknown_members)} descriptions of groups have members that are not training "
            f"images, the first: the {kind} description of {image!r} with {other!r}; describe them "
            "again (python -m captioning.describe; of a function: adapt)"
        )
    return texts


def shuffled(descriptions: Descriptions, seed: int) -> Descriptions:
    """Permute the texts of each kind among all images, as a control experiment.

    Every text is still used once, but for another image: the gain that remains does not come from
    what descriptions state about their images. The permutation of a kind depends only on the seed,
    the kind and the number of images.
    """
    texts = {}
    for kind, of_kind in descriptions.texts.items():
        key = int.from_bytes(hashlib.sha256(kind.encode()).digest()[:8], "big")
        order = np.random.default_rng([seed, key]).permutation(len(of_kind))
        texts[kind] = [of_kind[i] for i in order]
    return dataclasses.replace(descriptions, texts=texts)


def _check_kind(
    kind: str,
    paths: Sequence[str | os.PathLike[str]],
    counts: dict[str, int],
    found: Sequence[Record],
) -> None:
    """Raise DataError if a kind has no texts, or texts from different sources."""
    where = ", ".join(map(str, paths)) or "no file"
    command = f"python -m captioning.describe --config=... --kind={kind} (of a function: adapt)"
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


def lines(file: BinaryIO, path: Path, digest: Any = None) -> Iterator[tuple[bytes, Record | None]]:
    """Iterate over the lines with their records (None for a blank line). An incomplete last line is
    left out."""
    file.seek(0)
    try:
        for number, line in enumerate(safe_read.bounded_lines(file), 1):
            if digest is not None:
                digest.update(line)
            try:
                record = None if line.isspace() else _parse(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    log.warning("%s:%d: dropped an incomplete line", path, number)
                    return
                raise DataError(
                    f"{path}:{number}: expected a JSON object with image, kind and text, found "
                    f"{line[:80].decode(errors='replace').strip()!r} ({error}); repair or remove it"
                ) from error
            yield line, record
    except ValueError as error:  # a line is too long
        raise DataError(f"{path}: {error}; repair or remove it") from error


def _parse(line: bytes) -> Record:
    """Parse one line. Raises ValueError."""
    values = safe_read.parse_json(line)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    members = values.get("members", [])
    if not isinstance(members, list) or not all(isinstance(m, str) for m in members):
        raise ValueError("members is not a list of ids")
    strings: dict[str, str] = {}
    for name in [field for field in Record._fields if field != "members"]:
        value = values.get(name, None if name in ("image", "kind", "text") else "")
        if not isinstance(value, str):
            raise ValueError(f"{name} is missing or not a string")
        if name in _SHOWN:
            value = sanitize(value)
        # Most lines repeat these strings: intern them to save memory.
        strings[name] = sys.intern(value) if name in _REPEATED else value
    return Record(members=tuple(members), **strings)
