"""A folder with weights and their configuration, as on the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from convert import names, openclip_to_flax
from lattec_jax.models.checkpoint import expected_shapes
from lattec_jax.models.config import CLIPConfig
from tests.openclip_models import shrunken

PREPROCESS_CFG = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}

# The same preprocessing, as the command takes it.
FLAGS = ["--mean=0.5,0.4,0.3", "--std=0.2,0.3,0.4", "--interpolation=bilinear"]
FLAGS += ["--resize-mode=squash"]


def to_flax(*arguments: object) -> None:
    """Run the conversion command."""
    openclip_to_flax.main(["openclip_to_flax", *map(str, arguments)])


def random_tensors(config: CLIPConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """OpenCLIP's tensors of a model, without torch."""
    rng = np.random.default_rng(seed)
    params = {
        name: np.asarray(rng.standard_normal(shape, np.float32))
        for name, shape in expected_shapes(config).items()
    }
    return names.to_open_clip(params, config)


@pytest.fixture
def hub_folder(tmp_path) -> Path:
    """A folder of a shrunken ViT-B-32."""
    config = shrunken("ViT-B-32")
    folder = tmp_path / "hub"
    folder.mkdir()
    content = {"model_cfg": config, "preprocess_cfg": PREPROCESS_CFG}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    tensors = random_tensors(CLIPConfig.from_open_clip(config))
    safetensors.numpy.save_file(tensors, folder / "open_clip_model.safetensors")
    return folder
