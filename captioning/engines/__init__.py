"""The interface of a captioning engine, and the table of engines.

To add one, write a module like `pixels.py`, the smallest, with the functions of `EngineModule`, and
add a line to `ENGINES`: `--config.descriptions.engine=NAME` then selects it. Import heavy packages
(torch, transformers, openai) inside of functions only. Declare its settings as
`config.descriptions.NAME.*` in `configs/common.py` and in `lattec_jax.runtime.config_schema`. A
request for a group has several images; `captioning.collage.single_image` makes one of them.

An engine that needs neither a GPU nor a network may be added to `CHEAP_ENGINES` in
`lattec_jax.training.prepare`; `train` then starts it. One that cannot name classes is added to
`NO_CLASSES` in `lattec_jax.paper_tables.plan`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Generator, Iterable
from typing import NamedTuple, Protocol, cast

from ml_collections import ConfigDict
from PIL import Image

from lattec_jax.runtime.config import did_you_mean
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.text import sanitize, truncate

# Name -> module.
ENGINES = {
    "llava": "captioning.engines.llava",
    "openai": "captioning.engines.openai",
    "pixels": "captioning.engines.pixels",
}

MAX_TEXT_CHARS = 4000  # CLIP reads about the first 300
MAX_REASON_CHARS = 1000

# What Pillow or a model's processor raises for an image or a prompt that it cannot process.
# An engine turns these into a `Failure` of the one request.
REQUEST_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    MemoryError,
)


class Identity(NamedTuple):
    """What determines an engine's output beside the request: a part of a description's key."""

    engine: str
    model: str
    decoding: str  # precision, sampling, length, and how images are prepared; may be ""


@dataclasses.dataclass(frozen=True)
class Request:
    """The images and the prompt of one description."""

    image_id: str
    kind: str
    prompt: str
    images: tuple[Image.Image, ...]  # one, or the members of a group; not converted to RGB


@dataclasses.dataclass(frozen=True)
class Failure:
    """The reason why a request has no text, for the user to act on."""

    reason: str

    @classmethod
    def from_error(cls, error: Exception) -> Failure:
        """Return the failure for one of `REQUEST_ERRORS`."""
        return cls(f"{type(error).__name__}: {error}")


Result = str | Failure
Results = Generator[tuple[Request, Result], None, None]


class Engine(Protocol):
    """A loaded engine."""

    identity: Identity

    def describe(self, requests: Iterable[Request]) -> Results:
        """Yield each request once with its result, in any order, as soon as it is available.

        Pull a request only when the engine is ready for it: its images are held in memory. A text
        may be empty. An error that concerns a single request is yielded as a `Failure`.

        Raises:
            EngineError: an error that would repeat for every request.
        """
        ...


class EngineModule(Protocol):
    """The functions of an engine's module.

    `identity` and `processes` load no model: descriptions are also merged where there is none.
    """

    def identity(self, config: ConfigDict) -> Identity:
        """Return the identity of the engine that `load` would return."""
        ...

    def processes(self, config: ConfigDict) -> int:
        """Return the default number of processes on this host: one per GPU, or 1."""
        ...

    def load(self, config: ConfigDict) -> Engine:
        """Load the engine. Raises EngineError if anything that it needs is missing."""
        ...


def engine_module(config: ConfigDict) -> EngineModule:
    """Return the module of the configured engine. Raises ConfigError if there is none."""
    name = config.descriptions.engine
    if name not in ENGINES:
        hint = did_you_mean(name, ENGINES)
        raise ConfigError(
            f"config.descriptions.engine: no engine {name!r}; this version has "
            f"{', '.join(sorted(ENGINES))}" + (f". {hint}" if hint else "")
        )
    # A module is checked against a protocol only where its name is known statically.
    return cast(EngineModule, importlib.import_module(ENGINES[name]))


def clean_result(result: Result) -> Result:
    """Return a result as it is stored: valid Unicode, one line, bounded length. Idempotent."""
    if isinstance(result, Failure):
        return Failure(_one_line(truncate(result.reason, MAX_REASON_CHARS)))
    text = " ".join(result.split())
    # Unicode normalization may take quadratic time, so the length is checked first.
    if len(text) <= MAX_TEXT_CHARS:
        text = _one_line(text)
    if len(text) > MAX_TEXT_CHARS:  # NFC makes a few characters longer
        return Failure(f"the text has more than {MAX_TEXT_CHARS:,} characters")
    return text


def _one_line(text: str) -> str:
    return " ".join(sanitize(text).split())
