"""Adaptation methods by name; each module here that defines `METHODS` adds its methods."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from importlib import import_module

from ml_collections import ConfigDict

from lattec_jax.methods.base import Method
from lattec_jax.runtime.config import check_choice

Maker = Callable[[ConfigDict], Method]


def collect(path: Iterable[str], prefix: str) -> dict[str, Maker]:
    """The `METHODS` of all modules in the folders `path`, whose names begin with `prefix`. Raises
    ImportError if two modules define a method of one name."""
    found: dict[str, Maker] = {}
    for module in pkgutil.iter_modules(path, prefix):
        own = getattr(import_module(module.name), "METHODS", {})
        if twice := found.keys() & own.keys():
            raise ImportError(
                f"{module.name} defines {', '.join(sorted(twice))}, and so does a module before "
                "it; rename one"
            )
        found |= own
    return found


METHODS = collect(__path__, f"{__name__}.")


def make_method(config: ConfigDict) -> Method:
    """The method that `config` (the section `config.method`) describes. Raises ConfigError for an
    unknown one."""
    check_choice("method.name", config.name, tuple(METHODS))
    return METHODS[config.name](config)
