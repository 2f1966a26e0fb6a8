"""The architecture of a CLIP, as the weights' own configuration states it. Imports no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lattec_jax.errors import WeightsError

# Settings of open_clip's towers that this project does not implement, each with the value that
# leaves it off. A configuration that sets one of them is refused rather than half understood.
_BLOCKS_OFF: dict[str, Any] = {
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "act_kwargs": None,
}
_VISION_OFF: dict[str, Any] = {
    "attentional_pool": False,
    "timm_model_name": None,
    "pos_embed_type": "learnable",
    **_BLOCKS_OFF,
}
_TEXT_OFF: dict[str, Any] = {
    "hf_model_name": None,
    "embed_cls": False,
    "final_ln_after_pool": False,
    "proj_type": "linear",
    "proj_bias": False,
    **_BLOCKS_OFF,
}
# What `from_open_clip` reads, and what changes nothing here: settings of training, of towers that
# are refused, and of the tokenizer. Any other key may change the model, so it is refused.
_BOTH_READ = {"width", "layers", "mlp_ratio", "pool_type", "ls_init_value", "norm_kwargs"}
_VISION_KNOWN = {*_VISION_OFF, *_BOTH_READ, "head_width", "patch_size", "image_size", "no_ln_pre"}
_VISION_KNOWN |= {"final_ln_after_pool", "patch_dropout", "output_tokens", "attn_pooler_queries"}
_VISION_KNOWN |= {"attn_pooler_heads", "timm_model_pretrained", "timm_pool", "timm_proj"}
_VISION_KNOWN |= {"timm_proj_bias", "timm_drop", "timm_drop_path"}
_TEXT_KNOWN = {*_TEXT_OFF, *_BOTH_READ, "heads", "context_length", "vocab_size", "no_causal_mask"}
_TEXT_KNOWN |= {"eos_id", "pad_id", "output_tokens", "hf_model_pretrained", "hf_proj_type"}
_TEXT_KNOWN |= {"hf_pooler_type", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}
_TOP_KNOWN = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "cast_dtype"}
_TOP_KNOWN |= {"init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "output_dict"}
VISION_POOLS, TEXT_POOLS = ("tok", "avg"), ("argmax", "eos", "last", "first")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The image tower. Sizes are in pixels for images and patches, in units for widths."""

    width: int
    layers: int
    heads: int
    patch_size: int
    image_size: tuple[int, int]
    mlp_ratio: float = 4.0
    pre_norm: bool = True
    pool: str = "tok"  # "tok": the class token; "avg": the mean over patches
    final_norm_after_pool: bool = False
    layer_scale: float | None = None  # initial value, None where the blocks have no layer scale
    norm_epsilon: float = 1e-5

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower."""

    width: int
    layers: int
    heads: int
    context_length: int
    vocab_size: int
    mlp_ratio: float = 4.0
    causal: bool = True
    pool: str = "argmax"  # where the text is read out: "argmax" of the ids, "eos", "last", "first"
    eos_id: int = 2  # only read where pool is "eos"
    layer_scale: float | None = None
    norm_epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers and what joins them."""

    embed_dim: int
    vision: VisionConfig
    text: TextConfig
    quick_gelu: bool = False

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> CLIPConfig:
        """Read the `model_cfg` of open_clip (`open_clip/model_configs/*.json`).

        Raises:
            WeightsError: the configuration asks for an architecture outside the plain ViT CLIPs.
        """
        if "multimodal_cfg" in config or config.get("init_logit_bias") is not None:
            raise WeightsError(
                "expected a plain CLIP, found a CoCa or SigLIP configuration; lattec_jax reads "
                "the ViT CLIPs of open_clip without `multimodal_cfg` and `init_logit_bias`"
            )
        vision, text = config["vision_cfg"], config["text_cfg"]
        _refuse_unsupported("vision_cfg", vision, _VISION_OFF)
        _refuse_unsupported("text_cfg", text, _TEXT_OFF)
        _refuse_unknown("model_cfg", config, _TOP_KNOWN)
        _refuse_unknown("vision_cfg", vision, _VISION_KNOWN)
        _refuse_unknown("text_cfg", text, _TEXT_KNOWN)
        _refuse_other_pool("vision_cfg", vision, "tok", VISION_POOLS)
        _refuse_other_pool("text_cfg", text, "argmax", TEXT_POOLS)
        if not isinstance(vision["layers"], int):
            raise WeightsError(
                "expected a vision transformer, found a ResNet image tower "
                f"(vision_cfg.layers = {vision['layers']}); choose a ViT model"
            )
        image_size = vision["image_size"]
        return cls(
            embed_dim=config["embed_dim"],
            quick_gelu=config.get("quick_gelu", False),
            vision=VisionConfig(
                width=vision["width"],
                layers=vision["layers"],
                heads=vision["width"] // vision.get("head_width", 64),
                patch_size=vision["patch_size"],
                image_size=(image_size, image_size)
                if isinstance(image_size, int)
                else (image_size[0], image_size[1]),
                mlp_ratio=vision.get("mlp_ratio", 4.0),
                pre_norm=not vision.get("no_ln_pre", False),
                pool=vision.get("pool_type", "tok"),
                final_norm_after_pool=vision.get("final_ln_after_pool", False),
                layer_scale=vision.get("ls_init_value"),
                norm_epsilon=(vision.get("norm_kwargs") or {}).get("eps", 1e-5),
            ),
            text=TextConfig(
                width=text.get("width", 512),
                layers=text.get("layers", 12),
                heads=text.get("heads", 8),
                context_length=text.get("context_length", 77),
                vocab_size=text.get("vocab_size", 49408),
                mlp_ratio=text.get("mlp_ratio", 4.0),
                causal=not text.get("no_causal_mask", False),
                pool=text.get("pool_type", "argmax"),
                eos_id=text.get("eos_id", 2),
                layer_scale=text.get("ls_init_value"),
                norm_epsilon=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> CLIPConfig:
        """Read what `to_dict` wrote.

        Raises:
            WeightsError: keys are missing or unknown.
        """
        try:
            vision = dict(config["vision"])
            vision["image_size"] = tuple(vision["image_size"])
            towers = {"vision": VisionConfig(**vision), "text": TextConfig(**config["text"])}
            return cls(**{**config, **towers})
        except (KeyError, TypeError) as error:
            raise WeightsError(
                f"the model configuration cannot be read ({error}); "
                "convert the weights again with python -m convert.openclip_to_flax"
            ) from error


def _refuse_unsupported(section: str, found: Mapping[str, Any], off: Mapping[str, Any]) -> None:
    """Raise WeightsError if `found` turns on anything listed in `off`."""
    wrong = {key: found[key] for key in off if key in found and found[key] != off[key]}
    if wrong:
        raise WeightsError(
            f"expected a plain ViT CLIP, found {section} with {wrong}; lattec_jax does not "
            "implement these. Choose one of open_clip's plain ViT models"
        )


def _refuse_unknown(section: str, found: Mapping[str, Any], known: set[str]) -> None:
    """Raise WeightsError if `found` holds a key that may mean anything."""
    unknown = sorted(set(found) - known)
    unknown += [f"norm_kwargs.{k}" for k in (found.get("norm_kwargs") or {}) if k != "eps"]
    if unknown:
        raise WeightsError(
            f"expected the settings of open_clip 3.3 in {section}, found {', '.join(unknown)} too; "
            "what they do to the model is not known here. Choose one of open_clip's plain ViT "
            "models (docs/models.md lists them)"
        )


def _refuse_other_pool(
    section: str, found: Mapping[str, Any], default: str, pools: tuple[str, ...]
) -> None:
    """Raise WeightsError for a way of reading out a tower that is not implemented."""
    pool = found.get("pool_type", default)
    if pool not in pools:
        raise WeightsError(
            f"{section}.pool_type: expected one of {', '.join(pools)}, found {pool!r}; choose one "
            "of open_clip's plain ViT models"
        )


def text_lengths(tokens: np.ndarray, config: TextConfig) -> np.ndarray:
    """How many leading tokens of each text its feature depends on.

    With a causal tower read out at the end-of-text token, nothing after that token matters,
    whatever the padding: the token that is looked for is the first of its kind. Other towers need
    all of them: without a causal mask every token sees the padding, and "last" reads it.

    Args:
        tokens: `[N, L]` token ids.

    Returns:
        `[N]` int32 lengths between 1 and L.
    """
    if config.causal and config.pool == "argmax":
        return (np.argmax(tokens, axis=1) + 1).astype(np.int32)
    if config.causal and config.pool == "eos":
        return (np.argmax(tokens == config.eos_id, axis=1) + 1).astype(np.int32)
    return np.full(tokens.shape[0], tokens.shape[1], np.int32)
