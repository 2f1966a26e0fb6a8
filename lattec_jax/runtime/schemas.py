"""Schemas and readers of a run's JSON files. Imports no JAX.

A schema declares only the keys that are read; further keys are ignored. Keys that older versions
did not write are optional. This module imports pydantic, so commands import it only when they read.
The schemas of the report are in `lattec_jax.reporting.report_schema`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval
from pydantic import BaseModel, ConfigDict

from lattec_jax.runtime import safe_read
from lattec_jax.runtime.errors import DataError, UserError, short_repr
from lattec_jax.runtime.text import REPLACEMENT
from lattec_jax.runtime.validation import validate

MAX_COUNT = 10**12
Count = Annotated[int, Interval(ge=0, le=MAX_COUNT)]
Positive = Annotated[int, Interval(ge=1, le=MAX_COUNT)]
Fraction = Annotated[float, Interval(ge=0, le=1)]


class Record(BaseModel):
    """A JSON object with strict types; unknown keys are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class UnreadableCounts(Record):
    """Numbers of unreadable images that a run skipped."""

    train: Count
    test: Count


class Top1(Record):
    """The accuracy in the tables."""

    top1: Fraction


class SweepResults(Record):
    """`results.json` of a training run or of captioning.classify, as the paper's tables read it."""

    adapted: Top1 | None
    dataset: str
    protocol: str
    preset: str
    n_train: Count
    n_test: Count
    class_names: list[str]
    n_left_out: UnreadableCounts | None = None
    weights_source: dict[str, Any] | None = None


class MetricsLine(Record):
    """A line of `metrics.jsonl`: the step and its metrics; None stands for a non-finite value."""

    model_config = ConfigDict(extra="allow")
    # pydantic documents this override: it declares the type of the extra keys.
    __pydantic_extra__: dict[str, float | None]  # pyright: ignore[reportIncompatibleVariableOverride]
    step: Count


def log_lines(path: Path) -> Iterator[tuple[bytes, dict[str, float | None]]]:
    """Yield each line of `metrics.jsonl`, as bytes and parsed. Raise DataError for an invalid one.

    An incomplete last line, which a killed process left, is dropped.
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
                validate(MetricsLine, content, where, DataError, _REPAIR)
                yield line, content
    except (OSError, ValueError) as error:  # ValueError: a line that is too long
        raise DataError(f"{path} cannot be read: {error}; restore the run's own file") from error


_REPAIR = "repair or remove the line"


class Inputs(Record):
    """`inputs.json`: hashes of the inputs of a run."""

    weights_sha256: str | None = None
    class_names: list[str] | None = None


class DescriptionCounts(Record):
    """What `results.json` of a training run counts of its descriptions; None: it used none."""

    descriptions: dict[str, Any] | None = None


class Provenance(Record):
    """The sidecar file of pseudo-labels: what they depend on."""

    weights_sha256: str
    class_names: list[str]
    names: list[list[str]]
    templates: list[str]


class PredictionSettings(Record):
    """The sidecar file of predictions: their settings."""

    format: Literal["jsonl", "csv"]
    top: Positive


def read(path: Path, schema: Any, error: type[UserError], advice: str) -> dict[str, Any]:
    """Return the content of a JSON file that `schema` accepts, with all its keys (`json_safe`).

    A file that cannot be read, is not JSON or does not match the schema raises an `error`, whose
    message ends with `advice`.
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
    """Return JSON content with NaN and infinities as None, and lone surrogates as U+FFFD."""
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
