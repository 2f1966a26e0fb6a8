"""List the commands of lattec_jax, captioning and convert, or run one by its name.

    python -m lattec_jax
    python -m lattec_jax train --config=configs/demo.py

Each command has --help, and also runs as `python -m PACKAGE.NAME` (adapt: as
`python -m lattec_jax.adaptation`). --version prints the version.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from lattec_jax.commands import COMMANDS, module_file, summary
from lattec_jax.runtime.cli import as_invoked, asks_for_help, command
from lattec_jax.runtime.errors import ConfigError, did_you_mean
from lattec_jax.runtime.version import __version__


def listing() -> str:
    """Return the list of commands, one line each."""
    width = max(map(len, COMMANDS))
    lines, package = [as_invoked((__doc__ or "").strip())], ""
    for name, module in COMMANDS.items():
        if module.partition(".")[0] != package:
            package = module.partition(".")[0]
            lines += ["", f"{package}:"]
        lines.append(f"  {name:{width}}  {summary(module)}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """List the commands, or run the one that the first argument names."""
    if len(argv) < 2 or (argv[1].startswith("-") and asks_for_help(argv)):
        print(listing(), flush=True)
        return
    if argv[1] == "--version":
        print(__version__, flush=True)
        return
    name = argv[1]
    module = COMMANDS.get(name, name)
    if module not in COMMANDS.values():
        raise ConfigError(
            f"no command {name!r}. {did_you_mean(name, COMMANDS)} "
            "python -m lattec_jax lists all commands".replace("  ", " ")
        )
    entry = f"{module}.__main__" if module_file(module).name == "__main__.py" else module
    importlib.import_module(entry).main([module, *argv[2:]])


def run() -> None:
    """Run as the console script `lattec-jax`."""
    command(main)


if __name__ == "__main__":
    run()
