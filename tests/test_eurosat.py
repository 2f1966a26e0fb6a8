"""The real EuroSAT from its files to the results, where $LATTECLIP_DATA_DIR has it (tier full)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lattec_jax import reproduce

DATA = Path(os.environ.get("USERS_DATA_DIR") or "nowhere")
TINY_CLIP = Path(reproduce.__file__).parent / "demo/tiny_clip"

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not (DATA / "eurosat/2750").is_dir(),
        reason="$LATTECLIP_DATA_DIR has no eurosat/2750; python -m lattec_jax.download gets it",
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run of the packaged configuration, but for weights, engine and number of steps."""
    place = tmp_path_factory.mktemp("eurosat")
    command = [sys.executable, "-m", "lattec_jax.train", "--config=configs/eurosat.py"]
    command += [f"--config.weights={TINY_CLIP}", "--config.descriptions.engine=pixels"]
    command += ["--config.train.max_steps=3", "--config.log_every=1", "--workdir=run"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"LATTECLIP_DATA_DIR": str(DATA.resolve())}
    run = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "eurosat: 18,900 training images, 8,100 test images, 10 classes" in run.stdout
    return place


def split() -> dict[str, list[list]]:
    return json.loads((DATA / "eurosat/split_zhou_EuroSAT.json").read_text(encoding="utf-8"))


def cache_of(place: Path, kind: str, images: int) -> tuple[list[str], np.ndarray]:
    """Ids and pixels of the cache of this kind with so many images."""
    for folder in (place / "artifacts/eurosat/image_caches").glob(f"{kind}-*"):
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if len(index["ids"]) == images:
            return index["ids"], np.load(folder / "pixels.npy", mmap_mode="r")
    raise AssertionError(f"no {kind} cache of {images} images")


@pytest.mark.parametrize(("images", "parts"), [(18_900, ("train", "val")), (8_100, ("test",))])
def test_the_caches_hold_the_files_in_the_order_of_the_split(place, images, parts):
    ids, pixels = cache_of(place, "evaluation", images)
    assert ids == [image for part in parts for image, _, _ in split()[part]]
    for index in np.random.default_rng(0).choice(images, 200, replace=False):
        with Image.open(DATA / "eurosat/2750" / ids[index]) as image:
            expected = image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(pixels[index], np.asarray(expected))


def test_the_training_cache_holds_the_files_as_they_are(place):
    ids, pixels = cache_of(place, "training", 18_900)
    for index in np.random.default_rng(1).choice(len(ids), 200, replace=False):
        with Image.open(DATA / "eurosat/2750" / ids[index]) as image:
            np.testing.assert_array_equal(pixels[index], np.asarray(image.convert("RGB")))


def test_results_are_those_of_the_papers_protocol(place):
    results = json.loads((place / "run/results.json").read_text(encoding="utf-8"))
    assert (results["n_train"], results["n_test"]) == (18_900, 8_100)
    assert results["protocol"] == "coop, inductive, last step"
    assert results["class_names"][0] == "annual crop land" and len(results["class_names"]) == 10
    assert results["unreadable"] == [] and results["steps"] == 3
    labels = [label for _, label, _ in split()["test"]]
    correct = np.dot(np.bincount(labels), results["per_class"]["zero_shot"])
    np.testing.assert_allclose(correct / 8_100, results["zero_shot"]["top1"], atol=1e-9)
    logged = (place / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in logged) and len(logged) == 3
