"""What describes images: the interface of captioning engines, and the engines by name.

An engine is a module with three functions: `identity(config)`, `processes(config)` and
`load(config)`. The first two answer without loading a model, so that descriptions can be merged on
a machine that has none.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from ml_collections import ConfigDict
from PIL import Image

from lattec_jax.runtime.config import did_you_mean
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.text import sanitize, truncate

MAX_ANSWER_CHARS = 4000  # of a text; CLIP reads about the first 300
MAX_REASON_CHARS = 1000

# Name -> module. Each imports what is heavy only when it loads.
ENGINES = {
    "llava": "captioning.engines.llava",
    "openai": "captioning.engines.openai",
    "pixels": "captioning.engines.pixels",
}


class Identity(NamedTuple):
    """Whatever, beside the request, decides what an engine says. Part of a description's key."""

    engine: str
    model: str
    decoding: str  # precision, sampling, length, and how images are prepared; "" for none


@dataclasses.dataclass(frozen=True)
class Request:
    """One text that is wanted."""

    image_id: str
    kind: str
    prompt: str
    images: tuple[Image.Image, ...]  # one, or the members of a group; in the files' own modes


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there is no text for a request: a line that a person can act on."""

    reason: str


def checked(answer: str | Failure) -> str | Failure:
    """What an engine says as it may be written: valid Unicode, one line, bounded in length.

    What it returns, it returns unchanged when it is called again.
    """
    if isinstance(answer, Failure):
        return Failure(_line(truncate(answer.reason, MAX_REASON_CHARS)))
    text = " ".join(answer.split())
    # Normalization may take quadratic time: of bounded text only.
    if len(text) <= MAX_ANSWER_CHARS:
        text = _line(text)
    if len(text) > MAX_ANSWER_CHARS:  # NFC makes a few characters longer
        return Failure(f"the text has more than {MAX_ANSWER_CHARS:,} characters")
    return text


def _line(text: str) -> str:
    return " ".join(sanitize(text).split())


# What Pillow, and the processor of a model, raise for an image or a prompt that they cannot take.
UNFIT = (OSError, ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, MemoryError)


def unfit(error: Exception) -> Failure:
    """The failure of a request that could not be prepared."""
    return Failure(f"{type(error).__name__}: {error}")


class Engine(Protocol):
    """Turns requests into texts."""

    identity: Identity

    def describe(self, requests: Iterable[Request]) -> Iterator[tuple[Request, str | Failure]]:
        """Answer every request once, in any order, as soon as its answer is there.

        Requests are pulled when the engine wants them; their images are open. A text may be empty
        where there is nothing to say. What fails for one request alone is a `Failure`.

        Raises:
            EngineError: what would fail for every request.
        """
        ...


class EngineModule(Protocol):
    """What the module of an engine offers."""

    def identity(self, config: ConfigDict) -> Identity:
        """Of the engine that `load` would give for this configuration."""
        ...

    def processes(self, config: ConfigDict) -> int:
        """How many processes make sense on this host: one per GPU, or one."""
        ...

    def load(self, config: ConfigDict) -> Engine:
        """Load the engine.

        Raises:
            EngineError: a package, the model, a device, memory or the server is missing.
        """
        ...


def engine_module(config: ConfigDict) -> EngineModule:
    """The module of the engine that `config.descriptions.engine` names.

    Raises:
        ConfigError: no engine has this name.
    """
    name = config.descriptions.engine
    if name not in ENGINES:
        hint = did_you_mean(name, ENGINES)
        raise ConfigError(
            f"config.descriptions.engine: no engine {name!r}; this version has "
            f"{', '.join(sorted(ENGINES))}" + (f". {hint}" if hint else "")
        )
    return importlib.import_module(ENGINES[name])
