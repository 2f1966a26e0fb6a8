"""Write the report of a finished run.

    python -m lattec_jax.report --workdir=runs/digits-latteclip-s0

Reads the files that training wrote to the work directory and writes `report.html` there. Needs
neither JAX nor the weights nor the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lattec_jax.reporting import page
from lattec_jax.runtime.cli import WORKDIR, command, define_workdir, read
from lattec_jax.runtime.text import print_escaped


def main(argv: Sequence[str]) -> None:
    """The command."""
    values, _ = read(argv, __doc__, define_workdir, WORKDIR)
    print_escaped(f"report in {page.write(Path(values.workdir))}")


if __name__ == "__main__":
    command(main)
