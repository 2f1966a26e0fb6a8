"""Configuration: read a Python file, apply overrides, fill in the preset. Imports no JAX.

A configuration file defines `get_config()` and returns an `ml_collections.ConfigDict`. Values that
are `None` and named below `config.presets.<preset>` are filled in by `resolve` from the preset that
`config.preset` names, so that an explicit value, in the file or on the command line, always wins.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lattec_jax.errors import ConfigError, UserError

PACKAGED_CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def parse(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None] | None = None
) -> tuple[ConfigDict, flags.FlagValues]:
    """Read `--config=FILE`, its `--config.key=value` overrides and a command's own flags.

    Args:
        argv: the whole command line, program name first.
        define: adds the command's own flags.

    Returns:
        The resolved configuration and the parsed flags.

    Raises:
        ConfigError: no such file, a file that cannot be used, an unknown key or flag, or a value of
            the wrong type.
    """
    files = [a.partition("=")[2] for a in argv[1:] if a.lstrip("-").partition("=")[0] == "config"]
    if not files or not files[-1]:
        raise ConfigError(
            f"--config=FILE is missing; for example --config=configs/demo.py. {_available_configs()}"
        )
    config = _load(_find(files[-1]))
    others = [a for a in argv if a.lstrip("-").partition("=")[0] != "config"]
    values = flags.FlagValues()
    try:  # keys are looked up here, values are read below
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=others)
    except (KeyError, AttributeError) as error:
        raise ConfigError(f"unknown configuration key {_one_line(error)}") from error
    except flags.Error as error:
        raise ConfigError(_one_line(error)) from error
    if define is not None:
        define(values)
    rest = parse_flags(values, others)
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return resolve(values.config), values


def parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parse `argv` into `values` and return what is not a flag, program name first.

    Raises:
        ConfigError: an unknown flag or a value of the wrong type.
    """
    try:
        return values(argv)
    except (flags.Error, TypeError) as error:
        raise ConfigError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    """The message of an exception, without the quotes that a KeyError adds around it."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    return " ".join(str(error.args[0] if error.args else error).split())


def _find(file: str) -> Path:
    """The configuration file of this path, or else the packaged one of this name."""
    path, packaged = Path(file), PACKAGED_CONFIGS / Path(file).name
    for found in (path, packaged):
        if found.is_file():
            return found
    raise ConfigError(
        f"no configuration file {file} (looked in {Path.cwd()} and {PACKAGED_CONFIGS}). "
        f"{_available_configs(path.name)}"
    )


def _load(path: Path) -> ConfigDict:
    """What `get_config()` of a configuration file returns."""
    name = f"{path.stem}_config"
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = types.ModuleType(name)
    module.__file__ = str(path)
    try:
        loader.exec_module(module)
        config = module.get_config() if hasattr(module, "get_config") else None
    except Exception as error:  # noqa: BLE001 - anything may go wrong in a file of the user's
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
                 if f.filename == str(path)]  # fmt: skip
        where = f"line {lines[-1]}, " if lines else ""
        raise ConfigError(f"{path}: {where}{type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        found = f"get_config() that returns {type(config).__name__}"
        raise ConfigError(
            f"{path}: expected a function get_config() that returns a ConfigDict, found "
            f"{found if hasattr(module, 'get_config') else 'none'}; configs/folder.py is an example"
        )
    return config


def _available_configs(name: str = "") -> str:
    names = sorted(p.name for p in PACKAGED_CONFIGS.glob("*.py") if not p.stem.startswith("_"))
    return (did_you_mean(name, names) + " " if name else "") + f"Available: {', '.join(names)}"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence with the nearest of `names`, or an empty string where none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def resolve(config: ConfigDict) -> ConfigDict:
    """Fill in what the preset decides and return a locked copy without the presets.

    Raises:
        ConfigError: the preset does not exist or names a key that the configuration lacks.
    """
    config = ConfigDict(config.to_dict())
    presets = config.presets
    if config.preset not in presets:
        raise ConfigError(
            f"config.preset: expected one of {', '.join(sorted(presets))}, "
            f"found {config.preset!r}. {did_you_mean(config.preset, presets)}"
        )
    chosen = presets[config.preset]
    del config["presets"]
    with config.ignore_type():
        for path, value in leaves(chosen):
            section, _, key = path.rpartition(".")
            target = config[section] if section else config
            if key not in target:
                raise ConfigError(f"preset {config.preset!r} sets {path}, which does not exist")
            if target[key] is None:
                target[key] = value
    return config.lock()


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration with their dotted names."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON text; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=list) + "\n"


def from_json(path: Path) -> ConfigDict:
    """Read a `config.json` that a run left behind.

    Raises:
        ConfigError: the file is missing or is not JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"no {path.name} in {path.parent}; expected the work directory of a run of "
            "python -m lattec_jax.train"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return ConfigDict(content, convert_dict=True).lock()


def default_workdir(config: ConfigDict) -> Path:
    """`runs/<dataset>-<method>-s<seed>`."""
    return Path("runs") / f"{config.dataset.name}-{config.method.name}-s{config.seed}"


def artifacts_dir(config: ConfigDict) -> Path:
    """Where the stores, pseudo-labels and descriptions of the configured dataset lie."""
    return Path(config.artifacts) / config.dataset.name


def command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command: print errors of the user's without a traceback and exit with status 2."""
    try:
        main(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
