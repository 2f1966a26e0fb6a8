"""Configuration: read a Python file, apply overrides, fill in the preset. Imports no JAX.

A configuration file defines `get_config()` and returns an `ml_collections.ConfigDict`. Values that
are `None` are filled in by `resolve`: from `config.method_presets.<method>`, if the method that
`config.method.name` names has one, then from the preset `config.presets.<preset>` that
`config.preset` names. So an explicit value, in the file or on the command line, always wins.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lattec_jax.runtime import config_schema, safe_read
from lattec_jax.runtime.errors import ConfigError, did_you_mean

PACKAGED_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MAX_CONFIG_BYTES = 2**20


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
        ConfigError: no such file, an unknown key or flag, or a value of the wrong type.
    """
    argv = [argv[0], *_last_of_each(_find_config_files(_joined(argv[1:])))]
    files = [argument for argument in argv if re.match(r"--?config=.", argument)]
    if files:
        _check_keys(argv[1:], _flags_of([argv[0], files[-1]], None)[0].config)
    values, rest = _flags_of(argv, define)
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    if values.config is None:
        raise ConfigError(
            f"--config is missing; for example --config=configs/demo.py. {_available_configs()}"
        )
    if not isinstance(values.config, ConfigDict) or "presets" not in values.config:
        raise ConfigError(
            f"get_config of {values['config'].config_filename} returned "
            f"{type(values.config).__name__}; expected the ConfigDict of configs/common.py, changed"
        )
    return resolve(values.config), values


def _flags_of(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None] | None
) -> tuple[flags.FlagValues, list[str]]:
    """The flags of a command line, and what of it is not a flag."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Configuration file.", flag_values=values, sys_argv=list(argv)
    )
    if define is not None:
        define(values)
    return values, parse_flags(values, argv)


def _last_of_each(arguments: Iterable[str]) -> list[str]:
    """Of an override that is there several times only the last, also where the value is a tuple:
    absl would join these."""
    last: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        key, equals, _ = argument.partition("=")
        override = equals and re.match(r"--?config\.", key)
        name = key.lstrip("-") if override else str(position)
        last.pop(name, None)
        last[name] = argument
    return list(last.values())


def _check_keys(arguments: Sequence[str], config: Any) -> None:
    """Raise ConfigError for a `--config.key` that the configuration does not have."""
    known = [key for key, _ in leaves(config)] if isinstance(config, ConfigDict) else []
    for argument in arguments:
        override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if override and known and override[1] not in known:
            key = override[1]
            raise ConfigError(
                f"unknown configuration key config.{key}. {did_you_mean(key, known)}".rstrip()
            )


def parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parse `argv` into `values` and return what is not a flag, program name first.

    Raises:
        ConfigError: an unknown flag or key, or a value of the wrong type.
    """
    try:
        return values(argv)
    except (flags.Error, ImportError, OSError, TypeError, ValueError) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _joined(arguments: Sequence[str]) -> Iterator[str]:
    """Write `--config FILE` as `--config=FILE`."""
    left = iter(arguments)
    for argument in left:
        if argument in ("--config", "-config"):
            argument = f"--config={next(left, '')}"
        yield argument


def _find_config_files(arguments: Sequence[str]) -> Iterator[str]:
    """Replace a configuration path that does not exist here by the packaged file of that name."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name.lstrip("-") == "config" and value and not Path(value).exists():
            packaged = PACKAGED_CONFIGS / Path(value).name
            if Path(value).parent != Path("configs") or not packaged.exists():
                raise ConfigError(
                    f"no configuration file {value} (looked in {Path.cwd()} and "
                    f"{PACKAGED_CONFIGS}). {_available_configs(Path(value).name)}"
                )
            argument, value = f"--config={packaged}", str(packaged)
        if name.lstrip("-") == "config" and value:
            _check_defines_get_config(Path(value))
        yield argument


def _check_defines_get_config(path: Path) -> None:
    """Raise ConfigError unless `path` is a Python file with a `get_config` at its top level.

    What goes wrong inside of it keeps its traceback: it is the user's program.
    """
    try:
        tree = ast.parse(safe_read.read_text(path, MAX_CONFIG_BYTES), filename=str(path))
    except (MemoryError, OSError, RecursionError, SyntaxError, ValueError) as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error}") from error
    names = {getattr(node, "name", None) for node in tree.body}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    if "get_config" not in names:
        raise ConfigError(
            f"the configuration file {path} defines no function get_config; expected one that "
            "returns an ml_collections.ConfigDict, as configs/folder.py has it"
        )


def _available_configs(name: str = "") -> str:
    names = sorted(p.name for p in PACKAGED_CONFIGS.glob("*.py") if not p.stem.startswith("_"))
    return (did_you_mean(name, names) + " " if name else "") + f"Available: {', '.join(names)}"


def check_choice(key: str, found: object, choices: Sequence[str]) -> None:
    """Raise ConfigError unless the value of `config.<key>` is one of `choices`."""
    if found not in choices:
        raise ConfigError(
            f"config.{key}: expected one of {', '.join(choices)}, found {found!r}. "
            f"{did_you_mean(str(found), choices)}".rstrip()
        )


def resolve(config: ConfigDict) -> ConfigDict:
    """Fill in what the method and the preset decide; return a locked copy without the presets.

    Raises:
        ConfigError: the preset does not exist or names a key that the configuration lacks, a key
            of `configs/common.py` is missing, or a value is outside its range.
    """
    config = ConfigDict(config.to_dict())
    presets, method_presets = config.get("presets", {}), config.get("method_presets", {})
    for name in ("presets", "method_presets"):
        if name in config:
            del config[name]
    if absent := config_schema.missing(dict(leaves(config))):
        raise ConfigError(
            f"the configuration lacks config.{', config.'.join(absent[:3])}"
            f"{f' and {len(absent) - 3} more' if len(absent) > 3 else ''}; expected all keys of "
            "configs/common.py: let get_config begin with config = common.get_config()"
        )
    check_choice("preset", config.preset, sorted(presets))
    if config.method.name in method_presets:
        _fill_in(config, config.method.name, method_presets[config.method.name])
    _fill_in(config, config.preset, presets[config.preset])
    _convert_numpy_numbers(config)
    config_schema.check(dict(leaves(config)))
    return config.lock()


def _fill_in(config: ConfigDict, name: str, preset: ConfigDict) -> None:
    """Give the values that are None those of a preset."""
    with config.ignore_type():
        for path, value in leaves(preset):
            section, _, key = path.rpartition(".")
            target = config[section] if section else config
            if key not in target:
                raise ConfigError(f"preset {name!r} sets {path}, which does not exist")
            if target[key] is None:
                target[key] = value


def _convert_numpy_numbers(config: ConfigDict) -> None:
    """Turn NumPy's numbers, which a configuration file may compute, into Python's."""
    with config.ignore_type():
        for path, value in list(leaves(config)):
            if isinstance(value, numbers.Number) and hasattr(value, "item"):
                config.update_from_flattened_dict({path: value.item()})


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
    """Read a `config.json` that a run left behind, as it is.

    Raises:
        ConfigError: the file is missing, is not JSON, or holds a value outside its range.
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
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a key that it reserves
        raise ConfigError(f"{path}: {error}; {_RESTORE}") from error
    config_schema.check_sections(content, str(path))
    config_schema.check(dict(leaves(config)), str(path))
    return config.lock()


def shared_defaults() -> ConfigDict:
    """Return the configuration of the packaged `configs/common.py`, before presets are applied.

    It is loaded by its path: a project that uses this package may have a `configs` of its own.
    """
    spec = importlib.util.spec_from_file_location(
        "lattec_jax_common", PACKAGED_CONFIGS / "common.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def of_run(path: Path) -> ConfigDict:
    """Read the `config.json` of a run; keys that were added after the run get their defaults.

    Raises:
        ConfigError: see `from_json`; or a key is missing that says what was run.
    """
    config = from_json(path)
    found = dict(leaves(config))
    if absent := [key for key in _RECORDED if key not in found]:
        raise ConfigError(f"{path}: config.{absent[0]} is missing; {_RESTORE}")
    defaults = shared_defaults()
    defaults.method.name = config.method.name
    if config.preset in defaults.presets:
        defaults.preset = config.preset
    whole = resolve(defaults).copy_and_resolve_references().unlock()
    with whole.ignore_type():
        whole.update(config)
    return whole.lock()


_RESTORE = "restore the run's own file"
# What a configuration of any version says, and no default can replace.
_RECORDED = (
    "preset",
    "seed",
    "weights",
    "templates",
    "dataset.kind",
    "dataset.name",
    "method.name",
)


def default_workdir(config: ConfigDict) -> Path:
    """`runs/<dataset>-<method>-s<seed>`."""
    return Path("runs") / f"{config.dataset.name}-{config.method.name}-s{config.seed}"


def set_dir(config: ConfigDict) -> Path:
    """Where the images of a data set are written that brings no files of its own."""
    return Path(config.artifacts) / config.dataset.name


def artifacts_dir(config: ConfigDict) -> Path:
    """Where the image caches, pseudo-labels and descriptions of the configured dataset lie.

    A share of the training images has its own, below that of the whole: pseudo-labels and groups
    are those of the share, and of the seed that drew it.
    """
    fraction, seed = config.dataset.train_fraction, config.dataset.split_seed
    if fraction == 1:
        return set_dir(config)
    return set_dir(config) / (f"fraction-{fraction}" + (f"-split-seed-{seed}" if seed else ""))
