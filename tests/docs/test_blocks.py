"""Every shell and Python block of the README and of the pages is run, as a reader would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, PROGRAMS, SHELL, Block, blocks

# A run of the page's sweep: two seeds of the five rows of Table 3.
SWEEP = r"python -m lattec_jax\.train --config=configs/shapes\.py.* --workdir=runs/sweep/"


def environment(clone: Path) -> dict[str, str]:
    """The environment of a shell in the clone, on the CPU as it is."""
    variables = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
    variables["PYTHONPATH"] = str(clone)
    return variables


def run(block: Block, clone: Path) -> str:
    """Run a block and return what it prints."""
    if block.file:
        path = clone / block.file
        assert not path.exists(), f"{block.where}: {block.file} exists already"
        path.write_text(block.code, encoding="utf-8")
        return ""
    if block.language in SHELL:
        command = ["bash", "-euo", "pipefail", "-c", block.code]
    else:
        command = [sys.executable, "-c", block.code]
    done = subprocess.run(
        command, cwd=clone, env=environment(clone), capture_output=True, text=True
    )
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed, f"{block.where}\n{printed}"
    if block.fails_with:
        assert done.returncode != 0 and block.fails_with in printed, f"{block.where}\n{printed}"
    else:
        assert done.returncode == 0, f"{block.where}\n{printed}"
    return done.stdout


def to_run(page: Path) -> list[Block]:
    """The blocks of a page that are run."""
    return [b for b in blocks(page) if b.language in PROGRAMS and not b.not_run]


@pytest.mark.full
@pytest.mark.parametrize("page", [p for p in PAGES if to_run(p)], ids=lambda p: p.stem)
def test_the_blocks_of_a_page_run(clone, page):
    printed = "".join(run(block, clone) for block in to_run(page))
    if page.name == "extending.md":
        check_extending(clone, printed)


def check_extending(clone: Path, printed: str) -> None:
    """That both extensions of the page were trained."""
    assert "warning" not in printed
    assert len(re.findall(SWEEP, printed)) == 2 * 5
    found = json.loads((clone / "runs/shapes-latteclip-s0/results.json").read_text())
    assert (found["n_train"], found["n_test"], found["steps"]) == (46, 14, 5)
    assert found["class_names"] == ["circle", "square"]
    found = json.loads((clone / "runs/digits-fixed_labels-s0/results.json").read_text())
    assert (found["method"], found["steps"]) == ("fixed_labels", 5)
    assert found["adapted"] != found["zero_shot"]
    assert found["table"] in printed
