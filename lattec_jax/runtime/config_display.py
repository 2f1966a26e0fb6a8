"""A configuration as text: its part of `--help`, and `--print_config`.

Imports no JAX.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from lattec_jax.runtime.config import Parsed, default_config, flatten
from lattec_jax.runtime.config_comments import comment_of, comments, sort_by_assignment
from lattec_jax.runtime.config_file import ConfigFile, packaged_module
from lattec_jax.runtime.config_schema import allowed

COMMAND_LINE = "command line"
WIDTH = 100  # columns of the help


def help_entry(form: str, note: str, *paragraphs: str) -> Iterator[str]:
    """Yield the lines of `--help` for a flag or a key and its description."""
    yield f"  {form}  ({note})" if note else f"  {form}"
    indent = " " * 8
    for paragraph in paragraphs:
        yield from textwrap.wrap(
            paragraph, WIDTH, initial_indent=indent, subsequent_indent=indent,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip


def help_lines(parsed: Parsed) -> Iterator[str]:
    """Yield the lines of `--help` for every key: value, defaults of the presets, and comment."""
    known, found = dict(flatten(parsed.config)), comments(parsed.file.path)
    defaults = preset_values(parsed.file, parsed.config)
    yield f"Configuration {parsed.file.path}, with its options and the overrides applied:"
    for key in sort_by_assignment(known, found):
        declared = allowed(key)
        expected = (f"Expects {declared.description}.",) if declared else ()
        note = ", ".join(f"{name}: {value!r}" for name, value in differing(key, defaults).items())
        entry = f"config.{key} = {known[key]!r}"
        yield from help_entry(entry, note, *comment_of(key, found), *expected)


def print_lines(parsed: Parsed) -> Iterator[str]:
    """Yield the lines of `--print_config`: each key, where its value comes from, and the value."""
    known = dict(flatten(parsed.config))
    sources = origins(parsed)
    key_width = max(map(len, known)) + len("config.")
    source_width = max(map(len, sources.values()))
    for key in sort_by_assignment(known, comments(parsed.file.path)):
        yield f"{f'config.{key}':{key_width}}  {sources[key]:{source_width}}  {known[key]!r}"


def origins(parsed: Parsed) -> dict[str, str]:
    """Return where the value of each key was set last.

    The configuration is built in stages: the shared defaults, the values of the preset and of the
    method, those that the file changes, and the overrides.
    """
    config, file = parsed.config, parsed.file
    preset, method = config.preset, config.method.name
    presets = packaged_module("presets")
    found = {key: "shared default" for key, _ in flatten(config)}
    found |= dict.fromkeys(presets.PRESETS.get(preset, {}), f"preset {preset}")
    found |= dict.fromkeys(presets.METHODS.get(method, {}), f"method {method}")
    before = dict(flatten(default_config(f"preset={preset},method={method}")))
    by_preset = preset_values(file, config)
    for key, value in flatten(file.build(file.options)):
        if key not in before or before[key] != value:
            only = f" (preset {preset})" if differing(key, by_preset) else ""
            found[key] = f"data set {file.path.name}{only}"
    options = (file.options or "").split(",")
    for option, key in (("preset", "preset"), ("method", "method.name")):
        if any(part.startswith(f"{option}=") for part in options):
            found[key] = COMMAND_LINE
    return found | dict.fromkeys(parsed.overrides, COMMAND_LINE)


def preset_values(file: ConfigFile, config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Return the values of a file by preset; only those of `config` if it takes no options."""
    if not file.takes_options:
        return {config.preset: dict(flatten(config))}
    names = packaged_module("presets").PRESETS
    return {
        name: dict(flatten(file.build(f"preset={name},method={config.method.name}")))
        for name in names
    }


def differing(key: str, by_name: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the values of a key by name if they differ, otherwise nothing."""
    values = {name: values[key] for name, values in by_name.items() if key in values}
    if key == "preset" or len(set(map(repr, values.values()))) < 2:
        return {}
    return values
