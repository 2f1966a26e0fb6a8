"""Configuration files: find one, run it once, and ask it for the configuration of its options.

    --config=configs/eurosat.py:preset=released_code,method=reclip

What follows the colon is the argument of the file's `get_config`. Imports no JAX.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.abc
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple, cast

from ml_collections import ConfigDict, config_dict

from lattec_jax.runtime import safe_read
from lattec_jax.runtime.config_schema import renamed
from lattec_jax.runtime.errors import ConfigError, did_you_mean

PACKAGED_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MAX_CONFIG_BYTES = 2**20
# Options and their defaults.
DEFAULTS = {"preset": "paper", "method": "latteclip"}
_METHODS = Path(__file__).resolve().parents[1] / "methods"
# A project that uses this package may have a `configs` of its own, so the packaged folder is
# imported under another name.
_PACKAGE = sys.modules.setdefault("lattec_jax_configs", ModuleType("lattec_jax_configs"))
_PACKAGE.__path__ = [str(PACKAGED_CONFIGS)]


class Choice(config_dict.FieldReference):
    """A value that an option of `get_config` has chosen: assigning another one is an error.

    Other values were chosen along with it and would stay.
    """

    def __init__(self, option: str, value: str) -> None:
        self._option = option
        super().__init__(value)

    def set(self, value: Any, type_safe: bool = True) -> None:
        """Refuse any value but the first."""
        if getattr(self, "_value", value) != value:
            raise ConfigError(use_option(self._option, value))
        super().set(value, type_safe)


def use_option(option: str, value: object) -> str:
    """Tell how to choose a preset or a method."""
    key = "method.name" if option == "method" else option
    return (
        f"config.{key} cannot be set by itself, since it chooses other values too; write "
        f'--config=FILE:{option}={value}, or common.get_config("{option}={value}") in a '
        "configuration file"
    )


def parse_options(options: str, presets: Collection[str]) -> dict[str, str]:
    """Parse "preset=NAME,method=NAME", each part optional. Refuse an unknown option or preset.

    Whether the method exists is not checked: the configuration of a finished run may name one that
    no longer does.
    """
    chosen = dict(DEFAULTS)
    for part in filter(None, options.split(",")):
        option, equals, name = part.partition("=")
        if option not in DEFAULTS or not equals or not name:
            hint = did_you_mean(option, DEFAULTS)
            if option in presets:
                hint = f"Did you mean preset={option}?"
            raise ConfigError(
                f"unknown option {part!r} after the configuration file; expected "
                f"--config=FILE:preset=NAME,method=NAME. {hint}".rstrip()
            )
        chosen[option] = name
    check_choice("preset", chosen["preset"], presets)
    return chosen


def check_choice(key: str, found: str, choices: Collection[str]) -> None:
    """Raise ConfigError unless the value of `config.<key>` is one of `choices`."""
    if found not in choices:
        raise ConfigError(
            f"config.{key}: expected one of {', '.join(choices)}, found {found!r}. "
            f"{did_you_mean(found, choices)}".rstrip()
        )


def method_names() -> Sequence[str] | None:
    """Return the methods' names without importing JAX; None where a file does not spell them out.

    They are the keys of the dictionary `METHODS` in each file of `lattec_jax/methods`. If these
    have been imported already, their registry is asked: a program may have added a method.
    """
    if loaded := getattr(sys.modules.get("lattec_jax.methods"), "METHODS", None):
        return list(loaded)
    return _declared_methods(_METHODS)


@functools.cache
def _declared_methods(folder: Path) -> tuple[str, ...] | None:
    names: list[str] = []
    for file in sorted(folder.glob("*.py")):
        source = file.read_text(encoding="utf-8")
        if file.name == "__init__.py" or not re.search(r"^METHODS\b", source, re.MULTILINE):
            continue
        for node in ast.parse(source).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", 0)]
            if any(isinstance(target, ast.Name) and target.id == "METHODS" for target in targets):
                keys = getattr(getattr(node, "value", None), "keys", None)
                if keys is None or not all(isinstance(key, ast.Constant) for key in keys):
                    return None
                names += [key.value for key in keys]
    return tuple(names)


def packaged_module(name: str) -> ModuleType:
    """Import a module of the packaged `configs`, such as "common" or "presets"."""
    return importlib.import_module(f"{_PACKAGE.__name__}.{name}")


class ConfigFile(NamedTuple):
    """A configuration file that has been executed, and the options it was named with."""

    path: Path
    options: str | None  # None: no colon follows the file's name
    get_config: Callable[..., Any]

    @classmethod
    def load(cls, argument: str) -> ConfigFile:
        """Execute the file of PATH or PATH:OPTIONS.

        A path such as configs/demo.py that does not exist here is the packaged file of that name.
        Raise ConfigError if there is none, it cannot be executed, or lacks `get_config`.
        """
        name, colon, options = argument.partition(":")
        path = _find(name)
        get_config = getattr(_execute(path), "get_config", None)
        if not callable(get_config):
            raise ConfigError(
                f"the configuration file {path} defines no function get_config; expected one that "
                "returns an ml_collections.ConfigDict, as configs/folder.py has it"
            )
        return cls(path, options if colon else None, get_config)

    @property
    def takes_options(self) -> bool:
        """Whether `get_config` has a parameter."""
        return bool(inspect.signature(self.get_config).parameters)

    def build(self, options: str | None) -> ConfigDict:
        """Call `get_config`.

        Raise ConfigError if it takes no options, fails, or returns anything but a configuration.
        """
        parameters = list(inspect.signature(self.get_config).parameters.values())
        if options and not parameters:
            raise ConfigError(
                f"get_config of {self.path} takes no options, found {options!r}; write\n"
                '    def get_config(options: str = "") -> ConfigDict:\n'
                "        config = common.get_config(options)"
            )
        if options is None and parameters and parameters[0].default is inspect.Parameter.empty:
            options = ""
        config = self._call(*([options] if parameters and options is not None else []))
        if not isinstance(config, ConfigDict):
            raise ConfigError(
                f"get_config of {self.path} returned {type(config).__name__}; expected the "
                "ConfigDict of configs/common.py, changed"
            )
        return config

    def _call(self, *arguments: str) -> Any:
        """Call `get_config`; what goes wrong in it keeps its traceback, it is the user's program.

        A value of the wrong type and a key of an earlier version are told in one line.
        """
        try:
            return self.get_config(*arguments)
        except ConfigError as error:
            raise ConfigError(f"{self._line(error)}{error}") from error
        except AttributeError as error:
            if message := _former_key(error):
                raise ConfigError(f"{self._line(error)}{message}") from error
            raise
        except (ImportError, OSError, TypeError, ValueError) as error:
            raise ConfigError(f"{self._line(error)}{' '.join(str(error).split())}") from error

    def _line(self, error: BaseException) -> str:
        """The line of the file in which an error arose, unless that is where options are read."""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame for frame in frames if frame.filename == str(self.path)]
        if not lines or "(options" in (lines[-1].line or ""):
            return ""
        return f"{self.path}, line {lines[-1].lineno}: "


def _former_key(error: AttributeError) -> str:
    """What has become of the key that a configuration lacks, "" unless it is a former one."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if not frame.filename.endswith("config_dict.py"):
        return ""
    match = re.search(r"\w+", str(error))  # the key, in quotes
    return renamed(match[0]) if match else ""


def _find(name: str) -> Path:
    path = Path(name)
    packaged = PACKAGED_CONFIGS / path.name
    if path.exists():
        return path
    if path.parent == Path("configs") and packaged.exists():
        return packaged
    raise ConfigError(
        f"no configuration file {name} (looked in {Path.cwd()} and {PACKAGED_CONFIGS}). "
        f"{available_configs(path.name)}"
    )


class _Loader(importlib.abc.InspectLoader):
    """Loads a module from source text that has been read already."""

    def __init__(self, path: Path) -> None:
        self._source = safe_read.read_text(path, MAX_CONFIG_BYTES)
        self._code = self.source_to_code(self._source, str(path))

    def get_source(self, fullname: str) -> str:
        return self._source

    def get_code(self, fullname: str) -> CodeType:
        return self._code


def _execute(path: Path) -> ModuleType:
    """Execute a file as a module."""
    try:
        loader = _Loader(path)
    except (MemoryError, OSError, RecursionError, SyntaxError, ValueError) as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error}") from error
    name = f"_config_{path.stem}"
    if path.resolve().parent == PACKAGED_CONFIGS:  # `common.py` imports relatively
        name = f"{_PACKAGE.__name__}.{name}"
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    module = importlib.util.module_from_spec(cast("ModuleSpec", spec))
    sys.modules[name] = module  # dataclasses look up their module
    try:
        loader.exec_module(module)
    except (ImportError, OSError) as error:
        raise ConfigError(f"the configuration file {path}: {error}") from error
    finally:
        del sys.modules[name]
    return module


def packaged_configs() -> list[Path]:
    """Return the packaged files that are configurations."""
    files = sorted(PACKAGED_CONFIGS.glob("*.py"))
    return [f for f in files if "\ndef get_config(" in f.read_text("utf-8") and f.stem != "common"]


def available_configs(name: str = "") -> str:
    """List the packaged configurations for a message, and the nearest to `name`."""
    names = [path.name for path in packaged_configs()]
    return (did_you_mean(name, names) + " " if name else "") + f"Available: {', '.join(names)}"
