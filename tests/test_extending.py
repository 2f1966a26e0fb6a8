"""docs/extending.md followed literally, in a copy of the repository."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import logsumexp

from lattec_jax.methods.base import Features, Targets

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Instead of whole runs, their command lines are read.
SHORT = """
python() {
    case "${2-}" in
    lattec_jax.train) command python -c "
import sys
from lattec_jax.runtime.config import parse
config, _ = parse(['train', *sys.argv[1:]])
print('would train', config.dataset.name, config.method.name)
" "${@:3}" ;;
    lattec_jax.evaluate) ;;
    *) command python "$@" ;;
    esac
}
"""


@pytest.fixture
def copy(tmp_path) -> Path:
    """The packages that the page works with."""
    for package in ("lattec_jax", "captioning", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    return tmp_path


def check_method(file: Path) -> None:
    """That the page's method takes the frozen model's labels and CLIP's loss of their texts."""
    spec = importlib.util.spec_from_file_location("fixed_labels", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (make,) = module.METHODS.values()
    method = make(ConfigDict())
    zero_shot = np.array([2, 0, 1, 0])
    labels = method.labels(None, None, Targets(zero_shot), ())
    np.testing.assert_array_equal(labels, zero_shot[None])
    images, texts = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    features = Features(images, texts[None], None, None, np.float32(3))
    found, aux = jax.jit(method.loss)(features, labels, ())
    logits = 3 * images @ texts.T
    both = [logits - logsumexp(logits, axis=axis, keepdims=True) for axis in (0, 1)]
    assert aux is None
    assert found == pytest.approx(-sum(np.diag(x).mean() for x in both), rel=1e-5)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.full)])
def test_the_page_can_be_followed(copy, whole):
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
        command = ["bash", "-euc", content if whole else SHORT + content]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        printed += done.stdout
    assert written == [
        "draw_shapes.py",
        "configs/shapes.py",
        "lattec_jax/methods/fixed_labels.py",
    ]
    assert "warning" not in printed
    assert printed.count("python -m lattec_jax.train --config=configs/shapes.py") == 2 * 5
    if not whole:
        would = re.findall("would train (.*)", printed)
        assert would == ["shapes latteclip", "digits fixed_labels"]
        check_method(copy / written[-1])
        return
    found = json.loads((copy / "runs/shapes-latteclip-s0/results.json").read_text())
    assert (found["n_train"], found["n_test"], found["steps"]) == (46, 14, 5)
    assert found["class_names"] == ["circle", "square"]
    found = json.loads((copy / "runs/digits-fixed_labels-s0/results.json").read_text())
    assert (found["method"], found["steps"]) == ("fixed_labels", 5)
    assert found["adapted"] != found["zero_shot"]
    assert found["table"] in printed
