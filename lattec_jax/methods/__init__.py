"""The methods by name. A new one is a file beside these that defines `METHODS`.

`METHODS` there maps names to functions of the section `config.method` that return a
`lattec_jax.methods.base.Method` and raise ConfigError for a setting outside its choices.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module

from ml_collections import ConfigDict

from lattec_jax.config import check_choice
from lattec_jax.methods.base import Method

METHODS: dict[str, Callable[[ConfigDict], Method]] = {}

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    for _name, _make in getattr(import_module(_module.name), "METHODS", {}).items():
        if _name in METHODS:
            raise ImportError(f"two modules of {__name__} define a method {_name!r}")
        METHODS[_name] = _make


def make_method(config: ConfigDict) -> Method:
    """The method that `config` (the section `config.method`) describes.

    Raises:
        ConfigError: an unknown method or a setting outside its choices.
    """
    check_choice("method.name", config.name, tuple(METHODS))
    return METHODS[config.name](config)
