"""The two lines between the stages, and what no module may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lattec_jax", "captioning", "convert", "configs")


def modules(package: str) -> list[str]:
    """Every module of a package."""
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def loaded_after(imports: list[str]) -> set[str]:
    """The top-level packages that a fresh interpreter holds after these imports."""
    code = "import importlib, sys\n"
    code += "".join(f"importlib.import_module({name!r})\n" for name in imports)
    code += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("lattec_jax", {"torch", "torchvision", "open_clip", "transformers"}),
        ("captioning", {"jax", "jaxlib", "flax", "optax", "orbax"}),
        ("convert", {"torch", "torchvision", "open_clip", "jax"}),
        ("configs", {"torch", "jax"}),
    ],
)
def test_packages_keep_to_their_side(package, forbidden):
    names = modules(package)
    assert len(names) > 2 or package == "configs"
    assert not loaded_after(names) & forbidden


def test_importing_the_package_is_cheap():
    assert not loaded_after(["lattec_jax"]) & {"jax", "numpy", "flax", "PIL", "absl"}


def imported_names(tree: ast.AST) -> set[str]:
    """Top-level packages imported anywhere in a module, inside of functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_the_other_side_or_runs_data(package):
    """Imports inside of functions count too; no pickle, `eval`, `exec` or unsafe load."""
    foreign = {"lattec_jax": {"torch", "open_clip"}, "captioning": {"jax", "flax", "optax"}}
    for file in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert not imported_names(tree) & foreign.get(package, set()), file
        assert not imported_names(tree) & {"dill", "cloudpickle", "marshal", "shelve"}, file
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{file}:{node.lineno}: bare except"
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                assert not names & {"Exception", "BaseException"}, f"{file}:{node.lineno}"
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec"}, f"{file}:{node.lineno}"
            assert not called.startswith("pickle."), f"{file}:{node.lineno}"
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert keywords.get("allow_pickle", "False") == "False", f"{file}:{node.lineno}"
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", f"{file}:{node.lineno}"
