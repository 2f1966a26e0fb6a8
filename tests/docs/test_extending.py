"""docs/extending.md: its files are written and its method is checked, without whole runs.

`test_blocks.py` runs the page's commands as they are.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import logsumexp

from lattec_jax.methods.base import Features, Targets
from tests.docs.pages import ROOT, SHELL
from tests.docs.test_blocks import SWEEP, run, to_run

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


def test_the_page_can_be_followed(clone):
    written, printed = [], ""
    for block in to_run(ROOT / "docs" / "extending.md"):
        if block.file:
            written.append(block.file)
        if block.language in SHELL:
            block = dataclasses.replace(block, code=SHORT + block.code)
        printed += run(block, clone)
    assert written == [
        "draw_shapes.py",
        "configs/shapes.py",
        "lattec_jax/methods/fixed_labels.py",
    ]
    assert "warning" not in printed
    assert len(re.findall(SWEEP, printed)) == 2 * 5
    assert re.findall("would train (.*)", printed) == ["shapes latteclip", "digits fixed_labels"]
    check_method(clone / written[-1])
