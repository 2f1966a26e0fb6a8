"""Convert between the parameter names and layouts of OpenCLIP and of the checkpoint directory.

PyTorch stores the kernel of a linear layer as [out, in] and that of a convolution as [out, in,
height, width]. Here kernels are [in, out], and the patch embedding is one linear layer over the
flattened patch [height, width, channel]. Nothing is computed, so a round trip is exact.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lattec_jax.models.checkpoint import check_shapes, expected_shapes, shapes_of
from lattec_jax.models.config import CLIPConfig
from lattec_jax.models.tensor_files import listed, refuse_not_finite
from lattec_jax.runtime.errors import WeightsError

_PATCHES = "visual/patch_embedding/kernel"
_TOP_LEVEL = {
    _PATCHES: "visual.conv1.weight",
    "visual/class_embedding": "visual.class_embedding",
    "visual/positional_embedding": "visual.positional_embedding",
    "visual/projection": "visual.proj",
    "text/token_embedding": "token_embedding.weight",
    "text/positional_embedding": "positional_embedding",
    "text/projection": "text_projection",
    "logit_scale": "logit_scale",
}
_IN_BLOCK = {
    "attn/qkv/kernel": "attn.in_proj_weight",
    "attn/qkv/bias": "attn.in_proj_bias",
    "attn/out/kernel": "attn.out_proj.weight",
    "attn/out/bias": "attn.out_proj.bias",
    "mlp/fc/kernel": "mlp.c_fc.weight",
    "mlp/fc/bias": "mlp.c_fc.bias",
    "mlp/proj/kernel": "mlp.c_proj.weight",
    "mlp/proj/bias": "mlp.c_proj.bias",
    "layer_scale_1": "ls_1.gamma",
    "layer_scale_2": "ls_2.gamma",
}
# OpenAI's archives contain these numbers beside the parameters; open_clip drops them too.
_NOT_PARAMETERS = {"input_resolution", "context_length", "vocab_size"}
_STORED_TYPES = {"float32", "float16", "bfloat16", "float64"}


def open_clip_name(name: str, custom_text: bool = False) -> str:
    """Return OpenCLIP's name of a parameter, a flat name of `expected_shapes`.

    With `custom_text`, the text tower's names begin with `text.`, as in its CustomTextCLIP.
    """
    prefix = "text." if custom_text and name.startswith("text/") else ""
    if name in _TOP_LEVEL:
        return prefix + _TOP_LEVEL[name]
    tower, *rest = name.split("/")
    if tower == "visual":
        prefix = "visual."
    if rest[0] == "blocks":
        prefix += f"transformer.resblocks.{rest[1]}."
        rest = rest[2:]
    if "/".join(rest) in _IN_BLOCK:
        return prefix + _IN_BLOCK["/".join(rest)]
    layer, parameter = rest  # a layer norm
    return f"{prefix}{layer}.{'weight' if parameter == 'scale' else 'bias'}"


def to_flax(
    tensors: Mapping[str, np.ndarray], config: CLIPConfig, where: str
) -> dict[str, np.ndarray]:
    """Convert OpenCLIP's state dict, read from `where`, to flat float32 parameters.

    Raises:
        WeightsError: tensors are unknown, missing, of the wrong shape or not floating-point; the
            message lists all of them.
    """
    tensors = {
        name.removeprefix("module."): array
        for name, array in tensors.items()
        if name not in _NOT_PARAMETERS
    }
    shapes = expected_shapes(config)
    custom_text = has_custom_text(tensors)
    names = {name: open_clip_name(name, custom_text) for name in shapes}
    scale = tensors.get("logit_scale")
    if scale is not None and scale.shape == (1,):  # some files store the scalar as a vector
        tensors["logit_scale"] = scale.reshape(())
    expected = {names[n]: _open_clip_shape(n, s, config) for n, s in shapes.items()}
    check_shapes(shapes_of(tensors), expected, where)
    wrong = [
        f"{name} {a.dtype}" for name, a in tensors.items() if a.dtype.name not in _STORED_TYPES
    ]
    if wrong:
        raise WeightsError(
            f"{where}: expected tensors of type {', '.join(sorted(_STORED_TYPES))}; "
            f"found {listed(wrong)}. Choose weights that are not quantized"
        )
    params = {}
    for name in shapes:
        array = tensors[names[name]]
        with np.errstate(over="ignore"):
            params[name] = _to_flax(name, array)
        if array.dtype == np.float64:  # it may be finite, but too large for float32
            refuse_not_finite({names[name]: params[name]}, f"{where}, in float32")
    return params


def to_open_clip(
    params: Mapping[str, np.ndarray], config: CLIPConfig, custom_text: bool = False
) -> dict[str, np.ndarray]:
    """Convert flat parameters to OpenCLIP's state dict; the inverse of `to_flax`."""
    return {
        open_clip_name(name, custom_text): _to_open_clip(name, params[name], config)
        for name in expected_shapes(config)
    }


def has_custom_text(tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether a state dict is of open_clip's CustomTextCLIP: its text tower has a prefix."""
    return any(name.removeprefix("module.").startswith("text.") for name in tensors)


def _open_clip_shape(name: str, shape: tuple[int, ...], config: CLIPConfig) -> tuple[int, ...]:
    if name == _PATCHES:
        return (shape[1], 3, config.vision.patch_size, config.vision.patch_size)
    return shape[::-1] if name.endswith("/kernel") else shape


def _to_flax(name: str, array: np.ndarray) -> np.ndarray:
    if name == _PATCHES:  # [W, 3, P, P] -> [P·P·3, W]
        array = array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    elif name.endswith("/kernel"):
        array = array.T
    return np.require(array, np.float32, "C")


def _to_open_clip(name: str, array: np.ndarray, config: CLIPConfig) -> np.ndarray:
    if name == _PATCHES:  # [P·P·3, W] -> [W, 3, P, P]
        patch = config.vision.patch_size
        array = array.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
    elif name.endswith("/kernel"):
        array = array.T
    return np.require(array, requirements="C")
