"""The architecture of a CLIP, and how it is read from open_clip's `model_cfg`. Imports no JAX.

`CLIPConfig` is stored in the checkpoint directory (`config.json`, key "model"). When one is read
from a file, types and ranges of its fields are checked by `lattec_jax.runtime.validation`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Interval

from lattec_jax.data.text.tokenizer_rules import MAX_TOKEN_IDS, ContextLength, TokenId
from lattec_jax.runtime.errors import WeightsError, short_repr
from lattec_jax.runtime.text import escape_unprintable, truncate
from lattec_jax.runtime.validation import STRICT, STRICT_OPEN, validate

# Ranges of the values in a configuration. The largest CLIPs of open_clip have widths up to 1,664,
# 48 layers and 901,629 token ids.
Width = Annotated[int, Interval(ge=1, le=2**16)]
Layers = Annotated[int, Interval(ge=1, le=1024)]
ImageSide = Annotated[int, Interval(ge=1, le=2**14)]
VocabSize = Annotated[int, Interval(ge=1, le=MAX_TOKEN_IDS)]
Ratio = Annotated[float, Interval(gt=0, le=64)]
Epsilon = Annotated[float, Interval(gt=0, le=0.1)]  # of layer norms
VisionPool = Literal["tok", "avg"]  # the class token; the mean over patches
TextPool = Literal["argmax", "eos", "last", "first"]  # "argmax": the largest token id


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The image tower."""

    __pydantic_config__ = STRICT

    width: Width
    layers: Layers
    heads: Width
    patch_size: ImageSide  # pixels
    image_size: tuple[ImageSide, ImageSide]  # pixels: height, width
    mlp_ratio: Ratio = 4.0
    pre_norm: bool = True
    pool: VisionPool = "tok"
    final_norm_after_pool: bool = False
    layer_scale: float | None = None  # initial value; None: the blocks have no layer scale
    norm_epsilon: Epsilon = 1e-5

    def __post_init__(self) -> None:
        _check_heads(self)
        if self.patch_size > min(self.image_size):
            raise ValueError(
                f"patches of {self.patch_size} pixels are larger than images of {self.image_size}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower."""

    __pydantic_config__ = STRICT

    width: Width
    layers: Layers
    heads: Width
    context_length: ContextLength
    vocab_size: VocabSize
    mlp_ratio: Ratio = 4.0
    causal: bool = True
    pool: TextPool = "argmax"
    eos_id: TokenId = 2  # only used with pool "eos"
    layer_scale: float | None = None
    norm_epsilon: Epsilon = 1e-5

    def __post_init__(self) -> None:
        _check_heads(self)
        if self.pool == "eos" and self.eos_id >= self.vocab_size:
            raise ValueError(f"eos_id {self.eos_id} is not one of {self.vocab_size} token ids")


def _check_heads(tower: VisionConfig | TextConfig | _OpenClipText) -> None:
    if tower.width % tower.heads:
        raise ValueError(f"width {tower.width} is not a multiple of the {tower.heads} heads")


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers and the size of their shared embedding."""

    __pydantic_config__ = STRICT

    embed_dim: Width
    vision: VisionConfig
    text: TextConfig
    quick_gelu: bool = False

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any], where: str = "model_cfg") -> CLIPConfig:
        """Read the `model_cfg` of open_clip (`open_clip/model_configs/*.json`). Raise WeightsError
        if it is no plain ViT CLIP, is incomplete, or a value has another type or is out of range.
        """
        if "multimodal_cfg" in config or config.get("init_logit_bias") is not None:
            raise WeightsError(
                f"{where}: expected a plain CLIP, found a CoCa or SigLIP configuration; lattec_jax "
                "reads the ViT CLIPs of open_clip without `multimodal_cfg` and `init_logit_bias`"
            )
        vision_cfg, text_cfg = config.get("vision_cfg"), config.get("text_cfg")
        if isinstance(vision_cfg, dict) and isinstance(text_cfg, dict):
            _check_supported(where, config, vision_cfg, text_cfg)
        advice = "choose one of open_clip's plain ViT models (docs/models.md lists them)"
        parsed = validate(_OpenClip, dict(config), where, WeightsError, advice)
        vision, text, size = parsed.vision_cfg, parsed.text_cfg, parsed.vision_cfg.image_size
        converted = {
            "embed_dim": parsed.embed_dim,
            "quick_gelu": parsed.quick_gelu,
            "vision": {
                "width": vision.width,
                "layers": vision.layers,
                "heads": vision.width // vision.head_width,
                "patch_size": vision.patch_size,
                "image_size": size if isinstance(size, tuple) else (size, size),
                "mlp_ratio": vision.mlp_ratio,
                "pre_norm": not vision.no_ln_pre,
                "pool": vision.pool_type,
                "final_norm_after_pool": vision.final_ln_after_pool,
                "layer_scale": vision.ls_init_value,
                "norm_epsilon": (vision.norm_kwargs or _OpenClipNorm()).eps,
            },
            "text": {
                "width": text.width,
                "layers": text.layers,
                "heads": text.heads,
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "mlp_ratio": text.mlp_ratio,
                "causal": not text.no_causal_mask,
                "pool": text.pool_type,
                "eos_id": text.eos_id,
                "layer_scale": text.ls_init_value,
                "norm_epsilon": (text.norm_kwargs or _OpenClipNorm()).eps,
            },
        }
        return validate(cls, converted, where, WeightsError, advice)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values from which `from_dict` makes the same configuration."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, config: Any, where: str = "the model configuration") -> CLIPConfig:
        """Read the values that `to_dict` returned. Raise WeightsError for other keys or values."""
        advice = "convert the weights again with python -m convert.openclip_to_flax"
        return validate(cls, config, where, WeightsError, advice)


# ------------------------------------------------------------------- open_clip's configurations

# Settings of open_clip's towers that are not implemented, each with the value that turns it off. A
# configuration with any other value is refused.
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
# The keys that `from_open_clip` reads, and those without effect on the model here: settings of
# training, of the tokenizer, and of towers that are refused. Any other key may change the model, so
# it is refused.
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


@dataclasses.dataclass(frozen=True)
class _OpenClipNorm:
    __pydantic_config__ = STRICT
    eps: Epsilon = 1e-5


# The keys that are read, with open_clip's defaults. The others were checked by `_check_supported`.
@dataclasses.dataclass(frozen=True)
class _OpenClipVision:
    __pydantic_config__ = STRICT_OPEN
    width: Width
    layers: Layers
    patch_size: ImageSide
    image_size: ImageSide | tuple[ImageSide, ImageSide]
    head_width: Width = 64
    mlp_ratio: Ratio = 4.0
    no_ln_pre: bool = False
    pool_type: VisionPool = "tok"
    final_ln_after_pool: bool = False
    ls_init_value: float | None = None
    norm_kwargs: _OpenClipNorm | None = None

    def __post_init__(self) -> None:
        heads = self.width // self.head_width
        if not heads or self.width % heads:
            raise ValueError(
                f"expected a width that head_width divides, found width {self.width} and "
                f"head_width {self.head_width}, which make {heads} heads"
            )


@dataclasses.dataclass(frozen=True)
class _OpenClipText:
    __pydantic_config__ = STRICT_OPEN
    width: Width = 512
    layers: Layers = 12
    heads: Width = 8
    context_length: ContextLength = 77
    vocab_size: VocabSize = 49408
    mlp_ratio: Ratio = 4.0
    no_causal_mask: bool = False
    pool_type: TextPool = "argmax"
    eos_id: TokenId = 2
    ls_init_value: float | None = None
    norm_kwargs: _OpenClipNorm | None = None
    hf_tokenizer_name: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_heads(self)


@dataclasses.dataclass(frozen=True)
class _OpenClip:
    __pydantic_config__ = STRICT_OPEN
    embed_dim: Width
    vision_cfg: _OpenClipVision
    text_cfg: _OpenClipText
    quick_gelu: bool = False


def _check_supported(
    where: str, config: Mapping[str, Any], vision_cfg: dict[str, Any], text_cfg: dict[str, Any]
) -> None:
    """Raise WeightsError for a tower or a setting that is not implemented or not known."""
    vision, text = f"{where}: vision_cfg", f"{where}: text_cfg"
    for section, found, off in ((vision, vision_cfg, _VISION_OFF), (text, text_cfg, _TEXT_OFF)):
        wrong = {key: found[key] for key in off if key in found and found[key] != off[key]}
        if wrong:
            raise WeightsError(
                f"{section}: expected a plain ViT CLIP, found {short_repr(wrong)}; lattec_jax does "
                "not implement these. Choose one of open_clip's plain ViT models"
            )
    _refuse_unknown(where, config, _TOP_KNOWN)
    _refuse_unknown(vision, vision_cfg, _VISION_KNOWN)
    _refuse_unknown(text, text_cfg, _TEXT_KNOWN)
    if isinstance(vision_cfg.get("layers"), list):
        raise WeightsError(
            f"{where}: expected a vision transformer, found a ResNet image tower "
            f"(vision_cfg.layers = {short_repr(vision_cfg['layers'])}); choose a ViT model"
        )


def _refuse_unknown(section: str, found: Mapping[str, Any], known: set[str]) -> None:
    """Raise WeightsError if `found` has an unknown key, whose effect on the model is unknown."""
    unknown = sorted(set(found) - known)
    norm = found.get("norm_kwargs")
    unknown += [
        f"norm_kwargs.{key}" for key in (norm if isinstance(norm, dict) else {}) if key != "eps"
    ]
    if unknown:
        listed = escape_unprintable(truncate(", ".join(unknown[:10]), 400))
        raise WeightsError(
            f"{section}: expected the settings of open_clip 3.3, also found {listed}, which may "
            "change the model. Choose one of open_clip's plain ViT models "
            "(docs/models.md lists them)"
        )
