"""Randomized open_clip models of any architecture, full-size or shrunken, for comparisons."""

from __future__ import annotations

import copy
import importlib.util
import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convert import open_clip_package
from convert.names import to_flax
from convert.open_clip_package import open_clip_folder
from lattec_jax.models.config import CLIPConfig
from tests.torch_fix import define_missing_torchvision_operators

# One model for each flag that the plain ViT CLIPs use.
ARCHITECTURES = {
    "plain": ("ViT-B-32", {}, {}),
    "quick_gelu": ("ViT-B-32-quickgelu", {}, {}),
    "layer_scale": ("ViT-M-16-alt", {}, {"ls_init_value": 1e-4}),
    "head_width_and_mlp_ratio": ("ViT-bigG-14", {"head_width": 24, "width": 72}, {"mlp_ratio": 3}),
    "no_ln_pre_avg_pool_no_mask": ("ViT-H-14-CLIPA", {"head_width": 32}, {}),
    "eos_pool": ("ViT-H-14-worldwide", {"head_width": 32}, {"eos_id": 2}),
    "rectangular": ("ViT-B-16", {"image_size": [32, 48]}, {}),
    "norm_epsilon": (
        "ViT-S-32",
        {"norm_kwargs": {"eps": 1e-6}},
        {"norm_kwargs": {"eps": 1e-4}, "pool_type": "last"},
    ),
}


def model_cfg(model: str) -> dict[str, Any]:
    """Return open_clip's configuration of a model; skip the test without open_clip."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("needs open_clip's model configurations")
    return json.loads((open_clip_folder() / "model_configs" / f"{model}.json").read_text())


def shrunken(
    model: str, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the configuration of `model` with its flags, small sizes and CLIP's tokenizer."""
    config = copy.deepcopy(model_cfg(model))
    config["embed_dim"] = 24
    config["vision_cfg"] |= {"width": 64, "layers": 2, "patch_size": 8, "image_size": 32}
    config["vision_cfg"] |= {"head_width": 32, **(vision or {})}
    config["text_cfg"] |= {"width": 48, "layers": 2, "heads": 3, "context_length": 77}
    config["text_cfg"] |= {"vocab_size": 49408, **(text or {})}
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        config["text_cfg"].pop(key, None)
    return config


def miniature(model: str) -> dict[str, Any]:
    """Return the configuration of `model` with all of its keys, but tiny sizes.

    MLP ratio, pooling, masks and end token are unchanged. A stated head width is divided by four;
    without one it remains open_clip's default of 64.
    """
    config = copy.deepcopy(model_cfg(model))
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = 24
    if "head_width" in vision:
        vision["head_width"] //= 4
    vision |= {"layers": 2, "width": 2 * vision.get("head_width", 64), "patch_size": 8}
    vision["image_size"] = 16 if vision["image_size"] == 224 else 24
    text |= {"layers": 2, "width": 32, "heads": 2, "vocab_size": 300}
    return config


def random_open_clip(config: dict[str, Any], seed: int = 0) -> Any:
    """Return an open_clip model in evaluation mode with all parameters random.

    open_clip initializes biases to zero, scales to one and layer scales to one value, so that
    swapping two of them would not be detected.
    """
    torch = pytest.importorskip("torch")
    define_missing_torchvision_operators()
    from open_clip.model import CLIP, CustomTextCLIP

    config = copy.deepcopy(config)
    text = config["text_cfg"]
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        text.pop(key, None)
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    torch.manual_seed(seed)
    model = kind(**config)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.1 if parameter.ndim < 2 else 0.01
            parameter.add_(torch.randn_like(parameter), alpha=size)
    return model.eval()


def state_dict(model: Any) -> dict[str, np.ndarray]:
    """Return the parameters of an open_clip model under open_clip's names."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def flat_params(model: Any, config: dict[str, Any]) -> tuple[CLIPConfig, dict[str, np.ndarray]]:
    """Return our configuration and flat parameters of an open_clip model."""
    ours = CLIPConfig.from_open_clip(config)
    return ours, to_flax(state_dict(model), ours, "the random model")


def use_shrunken_models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Replace open_clip's models by shrunken ones for conversion; return open_clip."""
    pytest.importorskip("torch")
    define_missing_torchvision_operators()
    import open_clip

    built_in = open_clip_package.built_in_model_cfg

    def small(model: str) -> dict:
        built_in(model)  # refuses unknown names
        return shrunken(model)

    monkeypatch.setattr(open_clip_package, "built_in_model_cfg", small)
    return open_clip
