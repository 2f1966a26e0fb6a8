"""Convert a checkpoint directory to OpenCLIP's weights.

    python -m convert.flax_to_openclip --checkpoint=DIR --out=FOLDER/open_clip_model.safetensors

`open_clip_config.json` is written beside the file, so that open_clip reads both with
`open_clip.create_model_and_transforms("local-dir:FOLDER")`, and `convert.openclip_to_flax` converts
them back without other flags. If the model has a tokenizer of the hub, its files are written there
too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from convert import names
from convert.hub import CONFIG_FILE
from lattec_jax.data.text.tokenizer import HubTokenizer
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.runtime.cli import command, read
from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.files import partial_directory, remove_abandoned, write_safetensors
from lattec_jax.runtime.text import print_escaped

_CLIP_VOCABULARY = 49408
REQUIRED = {"checkpoint": "weights/ViT-B-32", "out": "exported/open_clip_model.safetensors"}


def export(checkpoint: Checkpoint, path: Path) -> None:
    """Write OpenCLIP's weights to `path`, with configuration and hub tokenizer beside it.

    Raises:
        WeightsError: the name is unsuitable, or a file would replace another model's.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(f"--out={path}: expected a name that ends in .safetensors")
    if path.exists():
        raise WeightsError(f"{path} exists and is not overwritten; choose another name")
    custom_text = bool(checkpoint.source.get("custom_text"))
    model = open_clip_model_cfg(checkpoint.config)
    if custom_text:
        model["custom_text"] = True
    model["text_cfg"] |= checkpoint.tokenizer.open_clip_settings()
    preprocess = {"mode": "RGB", **checkpoint.preprocess.to_dict()}
    content = {"model_cfg": model, "preprocess_cfg": preprocess}
    texts = {CONFIG_FILE: json.dumps(content, indent=2) + "\n"}
    if isinstance(checkpoint.tokenizer, HubTokenizer):
        texts |= checkpoint.tokenizer.transformers_files()
    for name, text in texts.items():
        beside = path.parent / name
        if beside.exists() and beside.read_text(encoding="utf-8") != text:
            raise WeightsError(
                f"{beside} belongs to other weights (it is their configuration or tokenizer) and "
                "is not overwritten; choose a separate folder for each model"
            )
    tensors = names.to_open_clip(checkpoint.params, checkpoint.config, custom_text)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    with partial_directory(path) as scratch:
        weights = scratch / "weights"
        write_safetensors(weights, tensors, {"format": "pt"})
        for name, text in texts.items():
            (scratch / name).write_text(text, encoding="utf-8")
            os.replace(scratch / name, path.parent / name)
        os.replace(weights, path)


def open_clip_model_cfg(config: CLIPConfig) -> dict[str, Any]:
    """Convert to open_clip's `model_cfg`; the inverse of `CLIPConfig.from_open_clip`."""
    vision, text = config.vision, config.text
    height, width = vision.image_size
    vision_cfg = {
        "image_size": height if height == width else [height, width],
        "patch_size": vision.patch_size,
        "width": vision.width,
        "layers": vision.layers,
        "head_width": vision.width // vision.heads,
        "pool_type": vision.pool,
        "no_ln_pre": not vision.pre_norm,
        "final_ln_after_pool": vision.final_norm_after_pool,
        **_shared_cfg(vision),
    }
    text_cfg = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "pool_type": text.pool,
        "no_causal_mask": not text.causal,
        "eos_id": text.eos_id,
        **_shared_cfg(text),
    }
    return {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.quick_gelu,
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
    }


def _shared_cfg(tower: VisionConfig | TextConfig) -> dict[str, Any]:
    shared: dict[str, Any] = {"mlp_ratio": tower.mlp_ratio}
    if tower.layer_scale is not None:
        shared["ls_init_value"] = tower.layer_scale
    if tower.norm_epsilon != 1e-5:
        shared["norm_kwargs"] = {"eps": tower.norm_epsilon}
    return shared


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("checkpoint", "", "The directory to read.", flag_values=values)
    flags.DEFINE_string("out", "", "The .safetensors file to write.", flag_values=values)


def main(argv: Sequence[str]) -> None:
    values, _ = read(argv, __doc__, define_flags, REQUIRED)
    directory, out = Path(values.checkpoint), Path(values.out)
    checkpoint = Checkpoint.load(directory)
    export(checkpoint, out)
    print_escaped(f"wrote {out} and {out.parent / CONFIG_FILE}")
    tokenizer = checkpoint.tokenizer
    if not isinstance(tokenizer, HubTokenizer) and tokenizer.vocab_size != _CLIP_VOCABULARY:
        print_escaped(
            "note: open_clip cannot read this model's tokenizer; give open_clip the token ids of "
            f"{directory / 'tokenizer.json'}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    command(main)
