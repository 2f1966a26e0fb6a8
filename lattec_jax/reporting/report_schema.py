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
    """Accuracies on the test images."""

    top1: Fraction
    top5: Fraction | None


class PerClass(Record):
    """Accuracy of each class; None for a class without images."""

    zero_shot: list[Fraction | None] | None
    adapted: list[Fraction | None] | None


class Alarm(Record):
    """See `lattec_jax.reporting.alarms.Alarm`."""

    name: str
    metric: str
    value: float | None
    threshold: float | None
    classes: list[str]
    message: str
    advice: str


class ClassFractions(Record):
    """Fraction of the training images that are predicted as each class."""

    zero_shot: list[Fraction]
    adapted: list[Fraction]


class Health(Record):
    """See `lattec_jax.reporting.health.health_report`."""

    verdict: str
    alarms: list[Alarm]
    metrics: dict[str, float | None]
    class_fractions: ClassFractions


class LabelFree(Record):
    """Metrics without labels; `prototype_drift` is that of each class."""

    prototype_drift: list[float | None]


class DescriptionCounts(Record):
    """Numbers of images with and without a description of one kind."""

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
    """An image whose predicted class changed."""

    image: str
    thumbnail: Thumbnail
    before: str
    after: str
    label: str | None


class Changed(Record):
    """Numbers of images whose predicted class changed, and some of these images."""

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
    """A text of a training image and its mixer weight."""

    kind: str
    text: str | None
    weight: float | None


class Example(Record):
    """A training image with its texts."""

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
    """Check that the class indices of report data fit the number of classes.

    Args:
        data: content that matches `ReportData`.
        classes: the number of classes in `results.json`.
        where, advice: see `lattec_jax.runtime.validation.validate`.

    Raises:
        DataError: an index or matrix does not fit.
    """
    prototypes, confusion = data["prototypes"], data["confusion"] or {}
    indices = {
        "prototypes.nearest": {c for row in prototypes["nearest"] for c in row[:2]},
        **{
            f"confusion.{when}": {c for row in confusion.get(when, ()) for c in row[:2]}
            for when in ("before", "after")
        },
    }
    for name, found in indices.items():
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
