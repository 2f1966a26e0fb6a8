"""The script of docs/clusters.md that predicts with Ray Data, on a local Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from lattec_jax import Classifier
from tests.docs.pages import ROOT, blocks
from tests.dummy import dummy_checkpoint

NAME = "predict_on_ray.py"


@pytest.mark.full
def test_the_script_predicts_as_the_classifier_does(tmp_path):
    reason = "needs Ray: pip install 'ray[data]'"
    pytest.importorskip("ray", reason=reason)
    parquet = pytest.importorskip("pyarrow.parquet", reason=reason)
    (script,) = [b.code for b in blocks(ROOT / "docs/clusters.md") if b.file == NAME]
    (tmp_path / NAME).write_text(script, encoding="utf-8")
    checkpoint, rng = dummy_checkpoint(), np.random.default_rng(0)
    checkpoint.source["class_names"] = ["cat", "dog", "bird"]
    checkpoint.save(tmp_path / "run/model")
    vectors = rng.standard_normal((3, 16)).astype(np.float32)
    safetensors.numpy.save_file({"classifier": vectors}, tmp_path / "run/classifier.safetensors")
    (tmp_path / "images/more").mkdir(parents=True)
    for n in range(20):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/more/{n:02}.jpg")
    (tmp_path / "images/broken.jpg").write_bytes(b"no image")

    command = [sys.executable, NAME, "run", "images", "out"]
    with tempfile.TemporaryDirectory(prefix="ray-") as short:  # paths of sockets have a maximum
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": short}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["image"]: row for row in parquet.read_table(tmp_path / "out").to_pylist()}
    images = sorted((tmp_path / "images").rglob("*.jpg"))
    assert sorted(rows) == [str(path) for path in images]
    found = Classifier.load(tmp_path / "run").predict(images, on_error="record")
    for image in found:
        row = rows[image.image]
        if image.error is None:
            assert (row["class"], row["error"]) == (image.name, "")
            assert row["score"] == pytest.approx(image.score, abs=1e-5)
        else:
            assert row["class"] == "" and row["error"] == image.error
