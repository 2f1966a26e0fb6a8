"""Print the reference of all configuration values, as Markdown.

    python -m lattec_jax.runtime.config_reference > docs/configuration.md

Keys, defaults and comments come from `configs/common.py`, the values of presets and methods from
`configs/presets.py`, ranges and choices from `lattec_jax/runtime/config_schema.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lattec_jax.runtime.cli import command, read
from lattec_jax.runtime.config import default_config, flatten
from lattec_jax.runtime.config_comments import comment_of, comments, sort_by_assignment
from lattec_jax.runtime.config_display import differing
from lattec_jax.runtime.config_file import PACKAGED_CONFIGS, packaged_module
from lattec_jax.runtime.config_schema import SCHEMA

_HEAD = """\
# Configuration

All values of a configuration with the defaults of `configs/common.py`, by preset where the presets
differ (`configs/presets.py`), and for a method that has its own. A file in `configs/` changes what
its data set needs. `--config=FILE:preset=NAME,method=NAME` chooses preset and method;
`--config.KEY=VALUE` on the command line overrides any other value. Every value is checked before
anything is read or computed: NaN and infinities are refused everywhere. With `--config=FILE`,
`--help` prints the values that a command would take, `--print_config` where each comes from.

This file is generated: `python -m lattec_jax.runtime.config_reference > docs/configuration.md`.

| `config.` | default | expected | meaning |
|---|---|---|---|
"""


def reference() -> str:
    """Return the reference as Markdown: one table of all keys."""
    found = comments(PACKAGED_CONFIGS / "common.py")
    presets = packaged_module("presets")
    defaults = {
        name: _named(dict(flatten(default_config(f"preset={name}")))) for name in presets.PRESETS
    }
    methods = {f"method {name}": _named(values) for name, values in presets.METHODS.items()}
    keys = sort_by_assignment(next(iter(defaults.values())), found)
    return _HEAD + "".join(
        _row(
            f"`{key}`",
            _default(key, defaults, methods),
            SCHEMA[key].description,
            " ".join(comment_of(key.removesuffix(".*"), found)),
        )
        for key in keys
    )


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by the keys of the schema: the kinds of descriptions are free."""
    return {key if key in SCHEMA else f"{key.rpartition('.')[0]}.*": v for key, v in values.items()}


def _default(
    key: str, defaults: Mapping[str, dict[str, Any]], methods: Mapping[str, dict[str, Any]]
) -> str:
    """Return the default of a key, by preset where these differ, and the values of methods."""
    values = differing(key, defaults) or {"": next(iter(defaults.values()))[key]}
    values |= {name: own[key] for name, own in methods.items() if key in own}
    shown = [f"{name}: `{_shown(v)}`" if name else f"`{_shown(v)}`" for name, v in values.items()]
    return "; ".join(shown)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return repr(tuple(round(v, 4) if isinstance(v, float) else v for v in value))
    return repr(value)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    read(argv, __doc__)
    print(reference(), end="")


if __name__ == "__main__":
    command(main)
