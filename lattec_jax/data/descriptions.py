"""The file between captioning and training: one JSON object a line.

    {"image": id, "kind": "image" | "group" | ..., "text": str, "engine": str, "model": str,
     "prompt": str, "members": [ids]}                     ("members": of groups only)

The rule for reading: of several records of one image and kind the last wins; an empty text counts
as missing; a missing text takes no part in its image's mix (its weight is 0); records of unknown
images are counted and ignored; a kind without any text for the given images is an error; so is a
malformed line, except that a last line which was cut off while being written is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
from ml_collections import ConfigDict

from lattec_jax.config import artifacts_dir
from lattec_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class Record(NamedTuple):
    """One line of the file."""

    image: str
    kind: str
    text: str
    engine: str
    model: str
    prompt: str
    members: tuple[str, ...] = ()  # of a group, the image itself among them


@dataclasses.dataclass(frozen=True)
class Descriptions:
    """The texts of N images, in the order of the ids that were asked for."""

    kinds: tuple[str, ...]
    texts: dict[str, list[str | None]]  # kind -> N texts, None where there is none
    # kind -> {"found": images with a text, "missing": without, "empty": those of the missing whose
    # text is empty, "duplicate": records that a later one replaces, "unknown_image": records}
    counts: dict[str, dict[str, int]]
    sha256: str  # of the files' contents, one after the other


def descriptions_path(config: ConfigDict, kind: str) -> Path:
    """`<artifacts>/<dataset>/descriptions/<engine>-<kind>.jsonl`.

    Raises:
        ConfigError: the engine's or the kind's name cannot be part of a file name.
    """
    engine = config.descriptions.engine
    for what, name in (("config.descriptions.engine", engine), ("kind of description", kind)):
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f"{what}: expected letters, digits, '-', '_' and '.', found {name!r}")
    return artifacts_dir(config) / "descriptions" / f"{engine}-{kind}.jsonl"


class DescriptionWriter:
    """Appends records. What `flush` returned from survives a crash.

    Opening drops a last line that an earlier writer did not finish.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises DataError where the file holds a malformed line."""
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._last: dict[tuple[str, str], Record] = {}
        self._file: BinaryIO = open(self._path, "a+b")  # noqa: SIM115 (closed by `close`)
        try:
            whole = 0
            for line, record in _lines(self._file, self._path):
                whole += len(line)
                if record is not None:
                    self._last[record.image, record.kind] = record._replace(text="")
            self._file.truncate(whole)
            if whole and not line.endswith(b"\n"):
                self._file.write(b"\n")
        except DataError:
            self._file.close()
            raise

    def done(self, kind: str, prompt: str, engine: str, model: str) -> dict[str, tuple[str, ...]]:
        """The images whose newest record is of this prompt, engine and model, with its members."""
        return {
            image: record.members
            for (image, of_kind), record in self._last.items()
            if (of_kind, record.prompt, record.engine, record.model)
            == (kind, prompt, engine, model)
        }

    def append(self, record: Record) -> None:
        """Add a record; it is on disk after the next `flush`."""
        values = record._asdict()
        if not record.members:
            del values["members"]
        self._file.write((json.dumps(values, ensure_ascii=False) + "\n").encode())
        self._last[record.image, record.kind] = record._replace(text="")

    def flush(self) -> None:
        """Hand what was appended to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read(
    paths: Sequence[str | os.PathLike[str]], kinds: Sequence[str], image_ids: Sequence[str]
) -> Descriptions:
    """Join the descriptions in `paths` with N images by id, by the rule at the top.

    Raises:
        DataError: a file is missing or malformed, or a kind has no text for any of the images.
    """
    rows = {image: row for row, image in enumerate(image_ids)}
    texts: dict[str, list[str | None]] = {kind: [None] * len(rows) for kind in kinds}
    sources: dict[str, list[tuple[str, ...] | None]] = {k: [None] * len(rows) for k in kinds}
    counts = {
        kind: dict.fromkeys(("found", "missing", "empty", "duplicate", "unknown_image"), 0)
        for kind in kinds
    }
    digest = hashlib.sha256()
    strangers: dict[tuple[str, str], str] = {}  # image and kind -> a member that is no such image
    for path in map(Path, paths):
        for record in _records(path, digest):
            if record.kind not in counts:
                continue
            strangers.pop((record.image, record.kind), None)  # the last record wins
            other = next((member for member in record.members if member not in rows), None)
            if other is not None and record.image in rows:
                strangers[record.image, record.kind] = other
            row = rows.get(record.image)
            if row is None:
                counts[record.kind]["unknown_image"] += 1
                continue
            if sources[record.kind][row] is not None:
                counts[record.kind]["duplicate"] += 1
            sources[record.kind][row] = (record.engine, record.model, record.prompt)
            texts[record.kind][row] = record.text
    if strangers:
        (image, kind), other = next(iter(strangers.items()))
        raise DataError(
            f"{len(strangers)} descriptions of groups have members that are not training images, "
            f"the first: the {kind} description of {image!r} with {other!r}; describe them again "
            "with python -m captioning.describe"
        )
    for kind in kinds:
        texts[kind] = [(text or "").strip() or None for text in texts[kind]]
        described = sum(source is not None for source in sources[kind])
        found = sum(text is not None for text in texts[kind])
        counts[kind] |= {
            "found": found,
            "missing": len(rows) - found,
            "empty": described - found,
        }
        _check_kind(kind, paths, counts[kind], {s for s in sources[kind] if s is not None})
    return Descriptions(tuple(kinds), texts, counts, digest.hexdigest())


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
    kind: str, paths: Sequence[str | os.PathLike[str]], counts: dict[str, int], sources: set
) -> None:
    """Refuse a kind without texts; warn of one whose texts come from different questions."""
    if not counts["found"]:
        raise DataError(
            f"no {kind!r} description for any of the {counts['missing']} images in "
            f"{', '.join(map(str, paths)) or 'no file'} ({counts['unknown_image']} are of other "
            f"images, {counts['empty']} empty); make them with "
            f"python -m captioning.describe --config=... --kind={kind}"
        )
    if len(sources) > 1:
        log.warning(
            "the %s descriptions come from %d different engines, models or prompts; describe again "
            "to have them alike",
            kind,
            len(sources),
        )


def _records(path: Path, digest: Any) -> Iterator[Record]:
    """The records of a file, whose whole content goes into `digest`."""
    try:
        with open(path, "rb") as file:
            for _, record in _lines(file, path, digest):
                if record is not None:
                    yield record
    except FileNotFoundError as error:
        kind = path.stem.rpartition("-")[2]
        raise DataError(
            f"no descriptions at {path}; make them with "
            f"python -m captioning.describe --config=... --kind={kind}"
        ) from error


def _lines(file: BinaryIO, path: Path, digest: Any = None) -> Iterator[tuple[bytes, Record | None]]:
    """Every whole line with its record (None: a blank line); a cut-off last line is left out."""
    file.seek(0)
    for number, line in enumerate(file, 1):
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


def _record(line: bytes) -> Record:
    """Parse one line. Raises ValueError."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    fields = [values.get(key) for key in ("image", "kind", "text")]
    fields += [values.get(key, "") for key in ("engine", "model", "prompt")]
    for key, value in zip(
        ("image", "kind", "text", "engine", "model", "prompt"), fields, strict=True
    ):
        if not isinstance(value, str):
            raise ValueError(f"{key} is missing or not a string")
    members = values.get("members", [])
    if not isinstance(members, list) or not all(isinstance(m, str) for m in members):
        raise ValueError("members is not a list of ids")
    image, kind, text, *source = fields
    return Record(image, sys.intern(kind), text, *map(sys.intern, source), tuple(members))
