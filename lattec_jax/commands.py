"""Registry of the commands of lattec_jax, captioning and convert, which are not imported here."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

# `python -m lattec_jax NAME` runs the module.
COMMANDS = {
    # A module `lattec_jax.adapt` would hide the function of that name.
    "adapt": "lattec_jax.adaptation",
    "download": "lattec_jax.download",
    "check_data": "lattec_jax.check_data",
    "pseudo_label": "lattec_jax.pseudo_label",
    "train": "lattec_jax.train",
    "evaluate": "lattec_jax.evaluate",
    "predict": "lattec_jax.predict",
    "report": "lattec_jax.report",
    "sweep": "lattec_jax.sweep",
    "reproduce": "lattec_jax.reproduce",
    "runtime.config_reference": "lattec_jax.runtime.config_reference",
    "demo.pretrain": "lattec_jax.demo.pretrain",
    "describe": "captioning.describe",
    "merge": "captioning.merge",
    "browse": "captioning.browse",
    "classify": "captioning.classify",
    "import_released": "captioning.import_released",
    "openclip_to_flax": "convert.openclip_to_flax",
    "flax_to_openclip": "convert.flax_to_openclip",
    "export": "convert.export",
    "list_models": "convert.list_models",
}


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
