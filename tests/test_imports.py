"""What importing loads, and what no module may do. (`lint-imports` checks who imports whom.)"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lattec_jax", "captioning", "convert", "configs", "benchmarks", "tests")
# What reads pickles or runs text, by any name; `pickle` itself has an exception that torch raises.
UNSAFE = {"dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}


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


def unsafe(tree: ast.AST) -> list[str]:
    """What of a module reads a pickle, runs text or loads without care, with its line."""
    found = [f"imports {name}" for name in imported_names(tree) & UNSAFE]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in {"pickle", "torch", "numpy"}:
            names = {alias.name for alias in node.names}
            found += [f"{node.lineno}: {n}" for n in names & {"load", "loads", "Unpickler", "*"}]
        if isinstance(node, ast.Import):  # another name would hide the calls below
            aliases = [a for a in node.names if a.name in {"pickle", "torch"} and a.asname]
            found += [f"{node.lineno}: {a.name} as {a.asname}" for a in aliases]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        words = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if (
            called in {"eval", "exec", "builtins.eval", "builtins.exec", "os.system", "yaml.load"}
            or called.startswith("pickle.")
            or words.get("allow_pickle", "False") != "False"
            or words.get("shell", "False") != "False"
            or words.get("trust_remote_code", "False") != "False"
            or (called == "torch.load" and words.get("weights_only") != "True")
        ):
            found.append(f"{node.lineno}: {called}")
    return found


@pytest.mark.parametrize(
    "text",
    ["eval('1')", "pickle.loads(b'')", "import pickle as p", "from pickle import load",
     "np.load(f, allow_pickle=True)", "torch.load(f)", "torch.load(f, weights_only=False)",
     "from torch import load", "yaml.load(f)", "import dill", "subprocess.run(c, shell=True)",
     "AutoModel.from_pretrained(f, trust_remote_code=True)"],
)  # fmt: skip
def test_what_is_unsafe_is_seen(text):
    assert unsafe(ast.parse(text))


def test_what_is_safe_is_not():
    assert not unsafe(ast.parse("torch.load(f, weights_only=True); model.eval(); np.load(f)"))


# Around parsers of other libraries, which raise whatever a damaged file makes them raise; where an
# HTTP client is made, whose package has two names; where the endings of reading are counted.
BROAD = {
    "captioning/engines/openai/server.py",
    "captioning/engines/openai/http_client.py",
    "lattec_jax/runtime/rust_errors.py",
    "convert/torch_file.py",
    "convert/hub_tokenizer.py",
    "tests/fuzz/test_mutations.py",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_runs_data(package):
    """No pickle, `eval`, `exec` or unsafe load."""
    for file in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert not unsafe(tree), file
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{file}:{node.lineno}: bare except"
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                broad = bool(names & {"Exception", "BaseException"})
                where = file.relative_to(ROOT).as_posix()
                assert not broad or where in BROAD, f"{file}:{node.lineno}"
