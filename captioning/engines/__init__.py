"""What describes images: the interface of captioning engines, and the engines by name."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Protocol

from ml_collections import ConfigDict
from PIL import Image

from lattec_jax.config import did_you_mean
from lattec_jax.errors import ConfigError

# Name -> module and class, whose constructor takes the whole configuration.
ENGINES = {"pixels": ("captioning.engines.pixels", "PixelsEngine")}


@dataclasses.dataclass(frozen=True)
class Request:
    """One text that is wanted."""

    image_id: str
    kind: str
    prompt: str
    pictures: tuple[Image.Image, ...]  # one, or the members of a group; in the files' own modes


class Engine(Protocol):
    """Turns requests into texts."""

    name: str
    model: str  # changes whenever the same request may get another text
    batch_size: int  # requests that `describe` wants at once

    def describe(self, requests: Sequence[Request]) -> list[str]:
        """One text per request, in their order; empty where there is nothing to say."""
        ...


def load_engine(config: ConfigDict) -> Engine:
    """The engine that `config.descriptions.engine` names.

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
    module, attribute = ENGINES[name]
    return getattr(importlib.import_module(module), attribute)(config)
