"""Convert a checkpoint to the files of Hugging Face's `CLIPModel`, without torch.

    config.json, model.safetensors       CLIPModel.from_pretrained(DIR)
    preprocessor_config.json             CLIPImageProcessor, for pipelines: see below
    tokenizer.json, tokenizer_config.json   AutoTokenizer

`CLIPModel` has one architecture: class token, square images, layer norm before the blocks, a causal
text tower pooled at its end token, no layer scale. Other architectures are refused.

transformers' image processor converts an image to RGB before resizing and, depending on its
backend, resamples or crops slightly differently; `use.py` preprocesses with Pillow like open_clip.
Its tokenizer does not repair broken encodings and HTML entities; other texts have the same ids.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, normalizers

from convert import names
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.tokenizer import HubTokenizer, Tokenizer
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.runtime.errors import WeightsError

# OpenCLIP's names; those of the text tower have no prefix.
_TOP_LEVEL = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # transformers' spelling
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
}
_PROJECTIONS = {"visual.proj": "visual_projection.weight"}
_PROJECTIONS["text_projection"] = "text_projection.weight"
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def refuse_unrepresentable(checkpoint: Checkpoint) -> None:
    """Raise WeightsError, with all reasons, if `CLIPModel` cannot represent the checkpoint."""
    config, preprocess = checkpoint.config, checkpoint.preprocess
    vision, text, tokenizer = config.vision, config.text, checkpoint.tokenizer
    zeroed = isinstance(tokenizer, HubTokenizer) and tokenizer.zeroed_id is not None
    conditions = {
        f"image pooling {vision.pool!r} instead of the class token": vision.pool != "tok",
        "no layer norm before the image blocks": not vision.pre_norm,
        "layer scale": vision.layer_scale is not None or text.layer_scale is not None,
        f"images of {vision.image_size} that are not square": len(set(vision.image_size)) > 1,
        "a text tower without a causal mask": not text.causal,
        f"text pooling {text.pool!r} instead of the end token": text.pool not in ("argmax", "eos"),
        # transformers interprets the end token 2 as "the largest id".
        "the end token 2": text.pool == "eos" and text.eos_id == 2,
        f"preprocessing {preprocess.resize_mode!r}": preprocess.resize_mode == "longest",
        f"text cleaning {tokenizer.clean!r}": tokenizer.clean == "canonicalize",
        "a tokenizer whose separators are replaced by 0": zeroed,
    }
    found = [what for what, holds in conditions.items() if holds]
    if found:
        raise WeightsError(
            f"Hugging Face's CLIPModel cannot represent this model; it has {', '.join(found)}. "
            "Export it with --to=openclip, or only the class vectors with --to=prototypes"
        )


def tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Return the parameters under `CLIPModel`'s names, float32."""
    found: dict[str, np.ndarray] = {}
    for name, array in names.to_open_clip(checkpoint.params, checkpoint.config).items():
        stem, _, kind = name.rpartition(".")
        if name in _TOP_LEVEL:
            found[_TOP_LEVEL[name]] = array
        elif name in _PROJECTIONS:  # [W, D] -> [D, W]
            found[_PROJECTIONS[name]] = np.ascontiguousarray(array.T)
        elif stem in _TOP_LEVEL:
            found[f"{_TOP_LEVEL[stem]}.{kind}"] = array
        else:
            found |= _in_block(name, array)
    return found


def _in_block(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Convert a block's parameter, `[visual.]transformer.resblocks.N.LAYER.KIND`."""
    tower = "vision_model" if name.startswith("visual.") else "text_model"
    number, layer = name.partition("resblocks.")[2].split(".", 1)
    prefix = f"{tower}.encoder.layers.{number}"
    if layer.startswith("attn.in_proj_"):  # [3·W, ...]: query, key and value
        kind = layer.removeprefix("attn.in_proj_")
        parts = zip("qkv", np.split(array, 3), strict=True)
        return {
            f"{prefix}.self_attn.{letter}_proj.{kind}": np.ascontiguousarray(part)
            for letter, part in parts
        }
    stem, _, kind = layer.rpartition(".")
    return {f"{prefix}.{_IN_BLOCK[stem]}.{kind}": array}


def files(checkpoint: Checkpoint) -> dict[str, str]:
    """Return name -> content of the directory's text files."""
    contents = {
        "config.json": model_config(checkpoint.config),
        "preprocessor_config.json": preprocessor_config(checkpoint.preprocess),
    }
    texts = {name: json.dumps(c, indent=2) + "\n" for name, c in contents.items()}
    if isinstance(checkpoint.tokenizer, HubTokenizer):
        return texts | checkpoint.tokenizer.transformers_files()
    return texts | _tokenizer_files(checkpoint.tokenizer)


def model_config(config: CLIPConfig) -> dict[str, Any]:
    """Return the content of `config.json`."""
    vision, text = config.vision, config.text
    activation = "quick_gelu" if config.quick_gelu else "gelu"
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            # transformers interprets 2 as "the largest id", the meaning of "argmax".
            "eos_token_id": text.eos_id if text.pool == "eos" else 2,
            **_tower(text, config.embed_dim, activation),
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": vision.image_size[0],
            "patch_size": vision.patch_size,
            **_tower(vision, config.embed_dim, activation),
        },
    }


def _tower(tower: VisionConfig | TextConfig, embed_dim: int, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": int(tower.width * tower.mlp_ratio),
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "layer_norm_eps": tower.norm_epsilon,
        "hidden_act": activation,
        "projection_dim": embed_dim,
    }


def preprocessor_config(preprocess: Preprocess) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`."""
    height, width = preprocess.size
    squash = preprocess.resize_mode == "squash"
    size = {"height": height, "width": width}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size if squash else {"shortest_edge": height},
        "resample": _RESAMPLE[preprocess.interpolation],
        "do_center_crop": not squash,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the tokenizer's files, with text cleaning as rules of the `tokenizers` library.

    Texts are padded with the end token: the causal text tower is pooled at the first one.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    cleaning = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if tokenizer.clean == "lower":
        cleaning.append(normalizers.Lowercase())
    backend.normalizer = normalizers.Sequence(cleaning)
    start, end = (backend.id_to_token(i) for i in (tokenizer.start_id, tokenizer.end_id))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.context_length,
        "bos_token": start,
        "eos_token": end,
        "pad_token": end,
    }
    config = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    return {"tokenizer.json": backend.to_str(), "tokenizer_config.json": config}
