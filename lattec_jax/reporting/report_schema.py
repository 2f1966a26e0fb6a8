"""Schemas of the files that the report reads: `results.json` and `report_data.json`.

Imports no JAX, but pydantic: import it when the files are read.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.schemas import Count, Fraction, Positive, Record

# --------------------------------------------------------------------------------- results.json


class Accuracy(Record):
    top1: Fraction
    top5: Fraction | None


class PerClass(Record):
    zero_shot: list[Fraction | None] | None  # of each class; None for a class without images
    adapted: list[Fraction | None] | None


class Alarm(Record):
    name: str
    metric: str
    value: float | None
    threshold: float | None
    classes: list[str]
    message: str
    advice: str


class ClassFractions(Record):
    zero_shot: list[Fraction]
    adapted: list[Fraction]


class Health(Record):
    verdict: str
    alarms: list[Alarm]
    metrics: dict[str, float | None]
    class_fractions: ClassFractions


class LabelFree(Record):
    prototype_drift: list[float | None]  # of each class


class DescriptionCounts(Record):
    found: Count
    missing: Count


class Results(Record):
    """`results.json` of a finished training run."""

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
    descriptions: dict[str, DescriptionCounts] | None = None
    unreadable: list[str] = Field(default_factory=list)

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
                    f"{name}: expected {len(self.class_names)} values, one per class, "
                    f"found {len(values)}"
                )
        return self


# ----------------------------------------------------------------------------- report_data.json

Thumbnail = Annotated[str, Field(pattern=r"^data:image/jpeg;base64,[A-Za-z0-9+/]*=*$")]


class Prototypes(Record):
    """Nearest classes, as (class, nearest class, cosine before, cosine after), and all cosines."""

    nearest: list[tuple[Count, Count, float | None, float | None]]
    cosines: list[list[float | None]] | None


class Confusion(Record):
    """Nonzero entries of both confusion matrices, as (true class, predicted class, count)."""

    before: list[tuple[Count, Count, Positive]]
    after: list[tuple[Count, Count, Positive]]


class ChangedImage(Record):
    image: str
    thumbnail: Thumbnail
    before: str
    after: str
    label: str | None


class Changed(Record):
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


class ExampleText(Record):
    kind: str
    text: str | None
    weight: float | None  # of the mixer


class Example(Record):
    image: str
    thumbnail: Thumbnail
    zero_shot: str
    current: str
    texts: list[ExampleText]


class ReportData(Record):
    """`report_data.json`."""

    prototypes: Prototypes
    confusion: Confusion | None
    changed: Changed
    examples: list[Example]


def check_classes(data: dict[str, Any], classes: int, where: str, advice: str) -> None:
    """Raise DataError unless the class indices and matrices of report data, which match
    `ReportData`, fit the number of classes in `results.json`."""
    prototypes, confusion = data["prototypes"], data["confusion"] or {}
    tables = {"prototypes.nearest": prototypes["nearest"]}
    tables |= {f"confusion.{when}": rows for when, rows in confusion.items()}
    for name, rows in tables.items():
        found = {index for row in rows for index in row[:2]}
        if found and max(found) >= classes:
            raise DataError(
                f"{where}: {name}: expected classes from 0 to {classes - 1}, found {max(found)}; "
                f"{advice}"
            )
    cosines = prototypes["cosines"]
    if cosines and {len(cosines), *map(len, cosines)} != {classes}:
        raise DataError(
            f"{where}: prototypes.cosines: expected a {classes} x {classes} matrix; {advice}"
        )
