"""Configurations: read a file and its overrides, check them, and store them as JSON.

A configuration file defines `get_config(options)` and returns an `ml_collections.ConfigDict` with
every value set: `configs/common.py` chooses those of the preset and the method that the options
name, the file changes what its data set needs. `--config.key=value` overrides both. Imports no JAX.
"""

from __future__ import annotations

import json
import numbers
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from lattec_jax.runtime import config_schema, safe_read
from lattec_jax.runtime.config_file import (
    ConfigFile,
    available_configs,
    check_choice,
    method_names,
    packaged_module,
    use_option,
)
from lattec_jax.runtime.errors import ConfigError, did_you_mean

Define = Callable[[flags.FlagValues], None]


class Parsed(NamedTuple):
    """A command line that names a configuration."""

    config: ConfigDict  # checked and locked
    flags: flags.FlagValues
    file: ConfigFile
    overrides: Mapping[str, Any]  # by dotted keys


def parse(argv: Sequence[str], define: Define | None = None) -> tuple[ConfigDict, flags.FlagValues]:
    """Return the checked and locked configuration of a command line, and the other flags."""
    parsed = parse_command_line(argv, define)
    return parsed.config, parsed.flags


def parse_command_line(argv: Sequence[str], define: Define | None = None) -> Parsed:
    """Read `--config=FILE:OPTIONS`, its `--config.key=value` overrides and a command's own flags.

    Raise ConfigError if there is no such file, option, key or flag, or for a value of another type.
    """
    files, arguments = _split(argv[1:])
    if not files:
        raise ConfigError(
            f"--config is missing; for example --config=configs/demo.py. {available_configs()}"
        )
    file = ConfigFile.load(files[-1])
    config = file.build(file.options)
    _check_keys(arguments, config, files[-1])
    values = flags.FlagValues()
    argv = [argv[0], *arguments]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    if define is not None:
        define(values)
    rest = parse_flags(values, argv)
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    config = validate(config)
    names = method_names()
    if names is not None:
        check_choice("method.name", config.method.name, names)
    return Parsed(config, values, file, config_flags.get_override_values(values["config"]))


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the values of `--config` from the other arguments.

    Of a repeated override only the last is returned: absl would concatenate tuples.
    """
    files: list[str] = []
    others: dict[str, str] = {}
    remaining = iter(arguments)
    for position, argument in enumerate(remaining):
        name, equals, value = argument.partition("=")
        if argument == "--":
            others |= {f"{position} {n}": a for n, a in enumerate((argument, *remaining))}
        elif name in ("--config", "-config"):
            files.append(value if equals else next(remaining, ""))
        else:
            is_override = equals and re.match(r"--?config\.", name)
            key = name.lstrip("-") if is_override else str(position)
            others.pop(key, None)
            others[key] = argument
    return [file for file in files if file], list(others.values())


def _check_keys(arguments: Sequence[str], config: ConfigDict, file: str) -> None:
    """Refuse an override of a key that does not exist or that an option decides."""
    known = [key for key, _ in flatten(config)]
    for argument in arguments:
        if argument == "--":
            break
        override = re.match(r"--?(?:no)?config\.([^=]*)=?(.*)", argument, re.DOTALL)
        if override is None:
            continue
        key, value = override.groups()
        if option := {"preset": "preset", "method.name": "method"}.get(key):
            raise ConfigError(
                use_option(option, value or "NAME").replace("FILE", file.partition(":")[0])
            )
        config_schema.check_renamed([key])
        if key not in known:
            raise ConfigError(
                f"unknown configuration key config.{key}. {did_you_mean(key, known)}".rstrip()
            )


def parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parse `argv` into `values` and return what is not a flag, program name first.

    Raise ConfigError for an unknown flag or key, or a value of the wrong type.
    """
    try:
        return values(argv)
    except (flags.Error, ImportError, OSError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        if option := re.search(r"Unknown command line flag '(\w+)'", message):
            message += _as_config_flag(option[1])
        message = message.replace("could not convert string to float:", "expected a number, found")
        message = re.sub(
            r"invalid literal for int\(\) with base \d+:", "expected a whole number, found", message
        )
        raise ConfigError(message) from error


def _as_config_flag(name: str) -> str:
    """Return the advice for an unknown flag, which may be a key of the configuration."""
    if name in ("preset", "method"):
        return f"; write --config=FILE:{name}=NAME"
    keys = [key for key in config_schema.SCHEMA if key.rpartition(".")[2] == name]
    return f"; write --config.{keys[0]}=VALUE" if keys else "; --help lists the flags"


def validate(config: ConfigDict) -> ConfigDict:
    """Check a configuration and return a locked copy.

    Raise ConfigError if a key of `configs/common.py` is missing or has a former name, or a value is
    outside its range.
    """
    config = ConfigDict(config.to_dict())
    found = dict(flatten(config))
    config_schema.check_renamed(found)
    if absent := [k for k in config_schema.SCHEMA if not k.endswith(".*") and k not in found]:
        raise ConfigError(
            f"the configuration lacks config.{', config.'.join(absent[:3])}"
            f"{f' and {len(absent) - 3} more' if len(absent) > 3 else ''}; expected all keys of "
            "configs/common.py: let get_config begin with config = common.get_config(options)"
        )
    _split_trackers(config)
    with config.ignore_type():  # a file may compute NumPy's numbers: turn them into Python's
        for path, value in found.items():
            if isinstance(value, numbers.Number) and (item := getattr(value, "item", None)):
                config.update_from_flattened_dict({path: item()})
    config_schema.check(dict(flatten(config)))
    return config.lock()


def _split_trackers(config: ConfigDict) -> None:
    """Split "a,b", which the command line gives as a tuple of one string, into names."""
    names = config.trackers
    if isinstance(names, tuple) and all(isinstance(name, str) for name in names):
        config.trackers = tuple(part for name in names for part in name.split(",") if part)


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each entry."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ConfigDict) -> str:
    """Return the configuration as JSON text; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=list) + "\n"


def from_json(path: Path) -> ConfigDict:
    """Read the `config.json` of a run, as it is.

    Raise ConfigError if the file is missing, is not JSON, or contains a former key or a value
    outside its range.
    """
    try:
        content = safe_read.read_json(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"no {path.name} in {path.parent}; expected the work directory of a run of "
            "python -m lattec_jax.train"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}; {_RESTORE}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected the configuration of a run, a JSON object, found "
            f"{type(content).__name__}; {_RESTORE}"
        )
    try:
        config = ConfigDict(content, convert_dict=True)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a reserved key
        raise ConfigError(f"{path}: {error}; {_RESTORE}") from error
    config_schema.check_sections(content, str(path))
    config_schema.check(dict(flatten(config)), str(path))
    return config.lock()


def load_run_config(path: Path) -> ConfigDict:
    """Read the `config.json` of a run; keys that were added after the run get their defaults.

    Raise ConfigError as `from_json` does, or if a key that no default can replace is missing.
    """
    config = from_json(path)
    found = dict(flatten(config))
    for key in _RECORDED:
        if key not in found:
            raise ConfigError(f"{path}: config.{key} is missing; {_RESTORE}")
    options = f"method={config.method.name}"
    if config.preset in packaged_module("presets").PRESETS:
        options += f",preset={config.preset}"
    complete = validate(default_config(options)).copy_and_resolve_references().unlock()
    with complete.ignore_type():
        complete.update(config)
    return complete.lock()


def default_config(options: str = "") -> ConfigDict:
    """Return the configuration of the packaged `configs/common.py`."""
    return packaged_module("common").get_config(options)


_RESTORE = "restore the run's own file"
# Keys that every version records, and no default can replace.
_RECORDED = (
    "preset", "seed", "weights", "templates", "dataset.kind", "dataset.name", "method.name",
)  # fmt: skip


def default_workdir(config: ConfigDict) -> Path:
    """Return `runs/<dataset>-<method>-s<seed>`."""
    return Path("runs") / f"{config.dataset.name}-{config.method.name}-s{config.seed}"


def dataset_dir(config: ConfigDict) -> Path:
    """Return the folder of the artifacts of a data set."""
    return Path(config.artifacts) / config.dataset.name


def artifacts_dir(config: ConfigDict) -> Path:
    """Return the folder of the image caches, pseudo-labels and descriptions of a data set.

    A fraction of the training images has a folder below that of all: pseudo-labels and groups
    depend on the fraction, and on the seed that drew it.
    """
    fraction, seed = config.dataset.train_fraction, config.dataset.split_seed
    name = f"fraction-{fraction}" + (f"-split-seed-{seed}" if seed else "")
    return dataset_dir(config) / ("" if fraction == 1 else name)
