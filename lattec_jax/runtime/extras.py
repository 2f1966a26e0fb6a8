"""The optional dependencies of the package, for messages about what is missing."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def install_command(extra: str) -> str:
    """Return the command that installs an extra: of this clone, or of the installed package."""
    if not (ROOT / "pyproject.toml").is_file():
        return f"pip install 'lattec_jax[{extra}]'"
    clone = "." if Path.cwd() == ROOT else ROOT
    return f"pip install -e '{clone}[{extra}]'"
