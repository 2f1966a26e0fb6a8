"""Write the report of a run again.

    python -m lattec_jax.report --workdir=runs/digits-latteclip-s0

Reads what training left in the work directory and writes `report.html` there; needs neither JAX
nor the weights nor the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from lattec_jax.config import command, parse_workdir
from lattec_jax.report import page


def main(argv: Sequence[str]) -> None:
    """The command."""
    print(f"report in {page.write(parse_workdir(argv)[0])}")


if __name__ == "__main__":
    command(main)
