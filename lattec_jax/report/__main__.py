"""Write the report of a run again.

    python -m lattec_jax.report --workdir=runs/digits-latteclip-s0

Reads what training left in the work directory and writes `report.html` there; needs neither JAX
nor the weights nor the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from lattec_jax.config import command, parse_flags
from lattec_jax.errors import ConfigError
from lattec_jax.report import page


def main(argv: Sequence[str]) -> None:
    """The command."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "Work directory of the run.", flag_values=values)
    parse_flags(values, argv)
    if not values.workdir:
        raise ConfigError("--workdir is missing; for example --workdir=runs/digits-latteclip-s0")
    print(f"report in {page.write(Path(values.workdir))}")


if __name__ == "__main__":
    command(main)
