"""What the files of a run hold: one declaration for all that read them. Imports no JAX.

Only what a reader uses is declared; other keys may be there. Keys that older versions did not write
are optional. The module imports pydantic, so commands import it when they read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lattec_jax.runtime import safe_read
from lattec_jax.runtime.errors import DataError, UserError, short_repr
from lattec_jax.runtime.text import REPLACEMENT
from lattec_jax.runtime.validation import validate

MAX_COUNT = 10**12
Count = Annotated[int, Interval(ge=0, le=MAX_COUNT)]
Positive = Annotated[int, Interval(ge=1, le=MAX_COUNT)]
Fraction = Annotated[float, Interval(ge=0, le=1)]


class _Record(BaseModel):
    """JSON of the types that are declared; further keys are not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


# --------------------------------------------------------------------------------- results.json


class Accuracy(_Record):
    """Fractions of the test images."""

    top1: Fraction
    top5: Fraction | None


class PerClass(_Record):
    """Accuracy of each class; None of a class without images."""

    zero_shot: list[Fraction | None] | None
    adapted: list[Fraction | None] | None


class Alarm(_Record):
    """An alarm of `lattec_jax.reporting.health`."""

    name: str
    metric: str
    value: float | None
    threshold: float | None
    classes: list[str]
    message: str
    do: str


class ClassFractions(_Record):
    """Fractions of the training images per predicted class."""

    zero_shot: list[Fraction]
    adapted: list[Fraction]


class Health(_Record):
    """What `lattec_jax.reporting.health.examine` returns."""

    verdict: str
    alarms: list[Alarm]
    metrics: dict[str, float | None]
    class_fractions: ClassFractions


class LabelFree(_Record):
    """Metrics that need no label; of each class how far its vector moved."""

    prototype_drift: list[float | None]


class Found(_Record):
    """How many descriptions of a kind there are."""

    found: Count
    missing: Count


class Results(_Record):
    """`results.json` of a finished training, as the report shows it."""

    method: str
    dataset: str
    class_names: Annotated[list[str], Field(min_length=1)]
    n_train: Count
    n_test: Count
    zero_shot: Accuracy | None
    adapted: Accuracy | None
    per_class: PerClass
    label_free: LabelFree
    health: Health
    descriptions: dict[str, Found] | None = None
    unreadable: list[str] = []

    @model_validator(mode="after")
    def _check_lengths(self) -> Results:
        lists = {
            "health.class_fractions.zero_shot": self.health.class_fractions.zero_shot,
            "health.class_fractions.adapted": self.health.class_fractions.adapted,
            "label_free.prototype_drift": self.label_free.prototype_drift,
        }
        if (self.zero_shot is None) != (self.adapted is None):
            raise ValueError("zero_shot and adapted: expected both or none")
        if self.zero_shot is not None:
            lists["per_class.zero_shot"] = self.per_class.zero_shot or []
            lists["per_class.adapted"] = self.per_class.adapted or []
        for name, values in lists.items():
            if len(values) != len(self.class_names):
                raise ValueError(
                    f"{name}: expected {len(self.class_names)} values, as many as classes, "
                    f"found {len(values)}"
                )
        return self


class LeftOut(_Record):
    """Unreadable images that a run went on without."""

    train: Count
    test: Count


class Top1(_Record):
    """The accuracy that the tables state."""

    top1: Fraction


class SweepResults(_Record):
    """`results.json` as the tables of a sweep need it: of a training, or of captioning.classify."""

    adapted: Top1 | None
    dataset: str
    protocol: str
    preset: str
    n_train: Count
    n_test: Count
    class_names: list[str]
    n_left_out: LeftOut | None = None
    weights_source: dict[str, Any] | None = None


# ----------------------------------------------------------------------------- report_data.json


Thumbnail = Annotated[str, Field(pattern=r"^data:image/jpeg;base64,[A-Za-z0-9+/]*=*$")]


class Prototypes(_Record):
    """Each class with its nearest other one: class, other class, cosine before and after."""

    nearest: list[tuple[Count, Count, float | None, float | None]]
    cosines: list[list[float | None]] | None


class Confusion(_Record):
    """True class, predicted class and images."""

    before: list[tuple[Count, Count, Positive]]
    after: list[tuple[Count, Count, Positive]]


class ChangedImage(_Record):
    """An image whose predicted class changed."""

    image: str
    thumbnail: Thumbnail
    before: str
    after: str
    label: str | None


class Changed(_Record):
    """How many images changed class, and some of them."""

    count: Count
    of: Count
    right: Count | None
    wrong: Count | None
    shown: list[ChangedImage]

    @model_validator(mode="after")
    def _check_counts(self) -> Changed:
        if (self.right is None) != (self.wrong is None):
            raise ValueError("right and wrong: expected both or none")
        return self


class ExampleText(_Record):
    """A text of a training image and its mixer weight."""

    kind: str
    text: str | None
    weight: float | None


class Example(_Record):
    """A training image with its texts."""

    image: str
    thumbnail: Thumbnail
    zero_shot: str
    current: str
    texts: list[ExampleText]


class ReportData(_Record):
    """`report_data.json`."""

    prototypes: Prototypes
    confusion: Confusion | None
    changed: Changed
    examples: list[Example]


def check_classes(data: dict[str, Any], classes: int, where: str, advice: str) -> None:
    """Refuse report data of another number of classes than the results have.

    Args:
        data: of the form of `ReportData`.
        classes: of the results.
        where, advice: see `lattec_jax.runtime.validation.validate`.

    Raises:
        DataError: naming the item.
    """
    found, maps = data["prototypes"], data["confusion"] or {}
    indices = {
        "prototypes.nearest": {c for row in found["nearest"] for c in row[:2]},
        **{f"confusion.{k}": {c for row in maps.get(k, ()) for c in row[:2]} for k in maps},
    }
    for name, own in indices.items():
        if own and max(own) >= classes:
            raise DataError(
                f"{where}: {name}: expected classes from 0 to {classes - 1}, found {max(own)}; "
                f"{advice}"
            )
    cosines = found["cosines"]
    if cosines and {len(cosines), *map(len, cosines)} != {classes}:
        raise DataError(
            f"{where}: prototypes.cosines: expected {classes} rows of {classes} values, as many as "
            f"classes; {advice}"
        )


# -------------------------------------------------------------------------------- metrics.jsonl


class LogLine(_Record):
    """A line of `metrics.jsonl`: the step, and metrics, of which None is not finite."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]
    step: Count


def log_lines(path: Path) -> Iterator[tuple[bytes, dict[str, float | None]]]:
    """Yield each line of a log, as it is and as it reads.

    A last line without a line break, which a killed process left, is dropped unless it is whole.

    Raises:
        DataError: the file cannot be read, or a line is not one of a log.
    """
    try:
        with safe_read.open_regular(path) as file:
            for number, line in enumerate(safe_read.bounded_lines(file), 1):
                where = f"{path}, line {number}"
                try:
                    content = json_safe(safe_read.parse_json(line))
                except ValueError as error:
                    if not line.endswith(b"\n"):
                        return
                    raise DataError(
                        f"{where}: expected a JSON object, found {line[:80]!r} ({error}); {_REPAIR}"
                    ) from error
                validate(LogLine, content, where, DataError, _REPAIR)
                yield line, content
    except (OSError, ValueError) as error:  # ValueError: a line that is too long
        raise DataError(f"{path} cannot be read: {error}; restore the run's own file") from error


_REPAIR = "repair or remove the line"


# ------------------------------------------------------------------- inputs.json and side files


class Inputs(_Record):
    """`inputs.json`: what a run was made of, by digests. Keys may be added."""

    weights_sha256: str | None = None
    class_names: list[str] | None = None


class Provenance(_Record):
    """Beside pseudo-labels: what they depend on."""

    weights_sha256: str
    class_names: list[str]
    names: list[list[str]]
    templates: list[str]


class PredictionSettings(_Record):
    """Beside a file of predictions: what its lines were made with."""

    format: Literal["jsonl", "csv"]
    top: Positive


# -------------------------------------------------------------------------------------- reading


def read(path: Path, schema: Any, error: type[UserError], advice: str) -> dict[str, Any]:
    """Return the content of a JSON file that `schema` accepts, with all its keys.

    Numbers that are not finite become None, and lone surrogates of file names U+FFFD.

    Raises:
        UserError: of the class `error`: the file cannot be read, is not JSON, or holds something
            else; the message ends with `advice`.
    """
    try:
        content = json_safe(safe_read.read_json(path))
    except OSError as failed:
        reason = failed.strerror or failed
        raise error(f"{path} cannot be read: {reason}; {advice}") from failed
    except ValueError as failed:
        raise error(f"{path} is not JSON: {failed}; {advice}") from failed
    if not isinstance(content, dict):
        raise error(f"{path}: expected a JSON object, found {short_repr(content)}; {advice}")
    validate(schema, content, str(path), error, advice)
    return content


def json_safe(content: Any) -> Any:
    """Return JSON content with None for NaN and infinities, and U+FFFD for lone surrogates."""
    if isinstance(content, str):
        if content.isascii():
            return content
        return "".join(REPLACEMENT if "\ud800" <= c <= "\udfff" else c for c in content)
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, (list, tuple)):
        return [json_safe(item) for item in content]
    if isinstance(content, dict):
        return {json_safe(key): json_safe(value) for key, value in content.items()}
    return content
