"""docs/extending.md followed literally, in a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def copy(tmp_path) -> Path:
    """The packages that the page works with."""
    for package in ("lattec_jax", "captioning", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    return tmp_path


@pytest.mark.full
def test_the_page_can_be_followed(copy):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment["PYTHONPATH"] = str(copy)
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    written, printed = [], ""
    for language, content in BLOCK.findall(page):
        if language == "python":
            name = content.splitlines()[0].removeprefix("# ")
            assert not (copy / name).exists(), f"{name} is there already"
            (copy / name).write_text(content, encoding="utf-8")
            written.append(name)
            continue
        assert language == "sh"
        command = ["bash", "-euc", content]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        printed += done.stdout
    assert written == [
        "draw_shapes.py",
        "configs/shapes.py",
        "lattec_jax/methods/fixed_labels.py",
    ]
    assert "warning" not in printed
    found = json.loads((copy / "runs/shapes-latteclip-s0/results.json").read_text())
    assert (found["n_train"], found["n_test"], found["steps"]) == (46, 14, 5)
    assert found["class_names"] == ["circle", "square"]
    found = json.loads((copy / "runs/digits-fixed_labels-s0/results.json").read_text())
    assert (found["method"], found["steps"]) == ("fixed_labels", 5)
    assert found["adapted"] != found["zero_shot"]
    assert printed.count("python -m lattec_jax.train --config=configs/shapes.py") == 2 * 5
    assert found["table"] in printed
