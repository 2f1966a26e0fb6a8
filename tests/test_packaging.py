"""The wheel, the sdist and the console script."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from lattec_jax import __main__ as lister
from lattec_jax.runtime import cli
from lattec_jax.runtime.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lattec_jax", "captioning", "convert", "configs")
# Files beside the modules that the commands read, and the marks of typed packages.
DATA = {
    "captioning/browse.html",
    "captioning/py.typed",
    "convert/py.typed",
    "lattec_jax/demo/tiny_clip/config.json",
    "lattec_jax/demo/tiny_clip/model.safetensors",
    "lattec_jax/demo/tiny_clip/tokenizer.json",
    "lattec_jax/paper_tables/paper_tables.json",
    "lattec_jax/py.typed",
    "lattec_jax/reporting/page.html",
}
SOURCE_FOLDERS = (*PACKAGES, "tests", "benchmarks", "docs", ".ci", ".github")
SOURCE_FILES = (
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "mkdocs.yml",
    "pyproject.toml",
    "setup.py",
)


def sources(*folders: str) -> set[str]:
    """The files of folders, without what running leaves there."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
    }


def test_one_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = [line.split()[1] for line in changelog.splitlines() if line.startswith("## ")]
    assert versions[:2] == ["[Unreleased]", f"[{__version__}]"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation


def test_the_console_script_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {cli.SCRIPT: "lattec_jax.__main__:run"}
    assert callable(lister.run)


def shown(capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    """Run the console script as installed; return its status and what it prints."""
    with pytest.raises(SystemExit) as ended:
        lister.run()
    return (ended.value.code, *capsys.readouterr())


def test_the_console_script_names_itself(capsys, monkeypatch):
    def by_module(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["/x/lattec_jax/__main__.py", *arguments])

    def by_script(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["/x/bin/lattec-jax", *arguments])

    by_module("predict", "--help")
    status, expected, _ = shown(capsys)
    assert status == 0
    assert "    python -m lattec_jax.predict --workdir=..." in expected
    by_script("predict", "--help")
    replaced = expected.replace("python -m lattec_jax.predict", "lattec-jax predict")
    assert shown(capsys) == (0, replaced, "")
    by_script("predict", "--workdir=w")
    status, _, error = shown(capsys)
    assert status == 2
    assert "--list=FILE: lattec-jax predict --workdir=w IMAGE_OR_FOLDER ..." in error
    by_script("trian")
    assert "Did you mean 'train'? lattec-jax lists all commands" in shown(capsys)[2]
    for call, line in ((by_module, "python -m lattec_jax"), (by_script, "lattec-jax")):
        call()
        lister.run()
        assert f"    {line} train --config=configs/demo.py\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("python -m lattec_jax", "lattec-jax"),
        ("`python -m lattec_jax adapt A`, a", "`lattec-jax adapt A`, a"),
        ("see python -m lattec_jax. Then", "see lattec-jax. Then"),
        ("run python -m captioning.describe --config=A", "run lattec-jax describe --config=A"),
        ("python -m lattec_jax.demo.pretrain", "lattec-jax demo.pretrain"),
        ("python -m lattec_jaxes.train", "python -m lattec_jaxes.train"),
        ("python -m tensorboard.main", "python -m tensorboard.main"),
    ],
)
def test_commands_in_texts_are_those_of_the_console_script(written, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lattec-jax"])
    assert cli.as_invoked(written) == expected
    monkeypatch.setattr(sys, "argv", ["/x/lattec_jax/__main__.py"])
    assert cli.as_invoked(written) == written


def test_the_version_is_shown(capsys):
    lister.main(["lattec_jax", "--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel that is built from it, of a copy. Needs no network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (*sources(*SOURCE_FOLDERS), *SOURCE_FILES, "MANIFEST.in"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", f"--outdir={out}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Package would be ignored" not in done.stdout + done.stderr
    return {path.suffix: path for path in out.iterdir()}


@pytest.mark.full
def test_the_wheel_holds_the_packages(built):
    with zipfile.ZipFile(built[".whl"]) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
        info = f"lattec_jax-{__version__}.dist-info"
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
        scripts = wheel.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in wheel.namelist()
    modules = {name for name in sources(*PACKAGES) if name.endswith(".py")}
    assert files == modules | DATA
    # What is not a module is listed here and in pyproject.toml, or it would be missing.
    assert sources(*PACKAGES) - modules == DATA
    assert scripts == "[console_scripts]\nlattec-jax = lattec_jax.__main__:run\n"
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == "<3.15,>=3.11"
    required = metadata.get_all("Requires-Dist", [])
    core = [line for line in required if "extra ==" not in line]
    assert any(line.startswith("jax<") for line in core)
    assert not any(line.startswith(("torch", "transformers", "open_clip")) for line in core)
    extras = {"convert", "captioning", "openai", "cuda", "tpu", "demo", "tfds", "wandb", "test"}
    assert extras <= set(metadata.get_all("Provides-Extra", []))


@pytest.mark.full
def test_the_sdist_holds_what_tests_and_docs_need(built):
    with tarfile.open(built[".gz"]) as sdist:
        files = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    assert sources(*SOURCE_FOLDERS) | set(SOURCE_FILES) <= files
    generated = {name for name in files if name.startswith("lattec_jax.egg-info/")}
    allowed = {"PKG-INFO", "MANIFEST.in", "setup.cfg", "mkdocs.yml", *SOURCE_FILES}
    assert files - generated - sources(*SOURCE_FOLDERS) <= allowed


@pytest.mark.full
def test_twine_accepts_both(built):
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.values())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


@pytest.mark.full
def test_a_wheel_runs_from_any_directory(built, tmp_path):
    """Without the repository: an environment with the wheel alone finds its own files."""
    environment = tmp_path / "environment"
    with zipfile.ZipFile(built[".whl"]) as wheel:
        wheel.extractall(environment)
    program = (
        "import sys; from lattec_jax import __main__ as main; print(main.__file__); "
        "sys.argv[0] = 'lattec-jax'; main.run()"
    )
    arguments = ["train", "--config=configs/demo.py", "--config.train.max_steps=2", "--workdir=run"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(environment)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(environment))
    assert "results in run/results.json" in done.stdout
    assert (tmp_path / "run/report.html").exists()
