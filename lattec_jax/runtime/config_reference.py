"""Print the reference of all configuration values, as Markdown.

    python -m lattec_jax.runtime.config_reference > docs/configuration.md

Keys, defaults and comments come from `configs/common.py`, ranges and choices from
`lattec_jax/runtime/config_schema.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lattec_jax.runtime.cli import command, read
from lattec_jax.runtime.config import PACKAGED_CONFIGS, leaves, resolve, shared_defaults
from lattec_jax.runtime.config_comments import comment_of, comments, in_order
from lattec_jax.runtime.config_schema import SCHEMA, allowed

_HEAD = """\
# Configuration

All values of a configuration, with the defaults of `configs/common.py` under both presets. A file
in `configs/` changes what its data set needs; `--config.KEY=VALUE` on the command line wins over
both. Every value is checked before anything is read or computed: NaN and infinities are refused
everywhere. `--help` with `--config=FILE` prints the values that a command would take.

This file is generated: `python -m lattec_jax.runtime.config_reference > docs/configuration.md`.

| `config.` | paper | released_code | expected | meaning |
|---|---|---|---|---|
"""


def reference() -> str:
    """The reference as Markdown: one table of all keys."""
    found = comments(PACKAGED_CONFIGS / "common.py")
    values = []
    for preset in ("paper", "released_code"):
        config = shared_defaults()
        config.preset = preset
        values.append(dict(leaves(resolve(config))))
    # The kinds of descriptions are free; each has a prompt.
    for own in values:
        for key in [key for key in own if allowed(key) is not SCHEMA.get(key)]:
            own[f"{key.rpartition('.')[0]}.*"] = own.pop(key)
    return _HEAD + "".join(
        _row(
            f"`{key}`",
            *(f"`{_shown(own[key])}`" for own in values),
            allowed(key).words,
            " ".join(comment_of(key.removesuffix(".*"), found)),
        )
        for key in in_order(values[0], found)
    )


def _shown(value: Any) -> str:
    return (
        repr(tuple(round(v, 4) if isinstance(v, float) else v for v in value))
        if isinstance(value, tuple)
        else repr(value)
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def main(argv: Sequence[str]) -> None:
    """The command."""
    read(argv, __doc__)
    print(reference(), end="")


if __name__ == "__main__":
    command(main)
