"""Registry of the commands of lattec_jax, captioning and convert, which are not imported here."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

MODULES = (
    "lattec_jax.adaptation",
    "lattec_jax.check_data",
    "lattec_jax.pseudo_label",
    "lattec_jax.train",
    "lattec_jax.evaluate",
    "lattec_jax.predict",
    "lattec_jax.report",
    "lattec_jax.sweep",
    "lattec_jax.runtime.config_reference",
    "lattec_jax.demo.pretrain",
    "captioning.describe",
    "captioning.merge",
    "captioning.browse",
    "captioning.classify",
    "captioning.import_released",
    "convert.openclip_to_flax",
    "convert.flax_to_openclip",
    "convert.export",
    "convert.list_models",
)
# A module `lattec_jax.adapt` would hide the function of that name.
_NAMES = {"lattec_jax.adaptation": "adapt"}
# `python -m lattec_jax NAME` runs the module.
COMMANDS = {_NAMES.get(module, module.partition(".")[2]): module for module in MODULES}


def module_file(module: str) -> Path:
    """Return the file that `python -m <module>` runs."""
    package, *names = module.split(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"no package {package}")
    path = Path(spec.origin).parent.joinpath(*names)
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def summary(module: str) -> str:
    """Return the first line of a command's docstring."""
    doc = ast.get_docstring(ast.parse(module_file(module).read_text(encoding="utf-8")))
    return (doc or "").partition("\n")[0]
