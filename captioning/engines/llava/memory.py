"""Estimate the memory that a LLaVA-NeXT model needs from its configuration.

For llava-hf/llava-v1.6-mistral-7b-hf (GiB):

    precision   weights   and for each description of a batch
    nf4             4.4   0.7
    int8            7.6   0.7
    bfloat16       14.1   0.7
    float32        28.2   1.4
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lattec_jax.runtime.errors import EngineError

# Bytes per weight of the language model's linear layers, and per other parameter. NF4 with double
# quantization: 4 bits, plus 8 bits per block of 64 and 32 bits per 256 blocks (QLoRA, Sec. 3).
PRECISIONS = {
    "nf4": (0.5 + 1 / 64 + 4 / (64 * 256), 2),
    "int8": (1, 2),
    "bfloat16": (2, 2),
    "float32": (4, 4),
}
# Names as of transformers 5. If they do not match, all linear layers are quantized.
UNQUANTIZED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
CUDA_RESERVE = 2**30  # bytes left for the CUDA context and the allocator
MAX_BATCH_SIZE = 64  # in a larger batch too many descriptions wait for the longest one
BATCH_MEMORY_FRACTION = 0.8  # of the free memory


class Memory(NamedTuple):
    """A number of bytes for each purpose."""

    weights: int
    per_description: int  # key-value cache and activations, for each description of a batch


def count_parameters(config: Any) -> tuple[int, int]:
    """Return the number of quantizable parameters (linear layers) and of all others."""
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.LlavaNextForConditionalGeneration(config)
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith(UNQUANTIZED)
    )
    return linear, sum(weight.numel() for weight in model.parameters()) - linear


def max_image_tokens(config: Any) -> int:
    """Return the tokens of the costliest image: the base image and all tiles of the largest grid.

    Each row of the grid's patches ends with a newline token.
    """
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    grids = [
        (height // vision.image_size * side) * (width // vision.image_size * side + 1)
        for height, width in config.image_grid_pinpoints
    ]
    return side * side + max(grids)


def unquantized_bytes(precision: str, device: str) -> int:
    """Return the bytes of an activation and of an unquantized parameter.

    On the CPU quantized models compute in float32.
    """
    return 4 if device == "cpu" and precision in ("nf4", "int8") else PRECISIONS[precision][1]


def estimate_memory(
    config: Any,
    precision: str,
    new_tokens: int,
    device: str = "cuda",
    counted: tuple[int, int] | None = None,
) -> Memory:
    """Return the memory that a model of this configuration needs.

    `counted` is `count_parameters(config)`, if it is known already.
    """
    linear, others = counted or count_parameters(config)
    linear_bytes, other_bytes = PRECISIONS[precision][0], unquantized_bytes(precision, device)
    text, vision = config.text_config, config.vision_config
    tokens = max_image_tokens(config) + 128 + new_tokens  # 128: the prompt
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head * tokens
    tiles = 1 + max(h * w // vision.image_size**2 for h, w in config.image_grid_pinpoints)
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    # The widest layer of each tower. Language model: gate, up projection and their product.
    # Vision tower: queries, keys, values and the MLP.
    activations = 3 * tokens * text.intermediate_size + 3 * tiles * patches * (
        vision.hidden_size + vision.intermediate_size
    )
    return Memory(
        int(linear * linear_bytes + others * other_bytes), int((cache + activations) * other_bytes)
    )


def available_memory(device: str) -> int:
    """Return the number of free bytes on the device."""
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":") for line in file)
    return int(lines["MemAvailable"].split()[0]) * 1024


def max_batch_size(need: Memory, device: str) -> int:
    """Return the batch size that fits into the free memory, with the weights loaded."""
    capacity = int(BATCH_MEMORY_FRACTION * available_memory(device) / need.per_description)
    return min(MAX_BATCH_SIZE, max(1, capacity))


def check_memory(config: Any, precision: str, new_tokens: int, free: int, device: str) -> Memory:
    """Return the memory that a model needs.

    Raises:
        EngineError: not even a batch of one fits into the free bytes; names what would fit.
    """
    reserve = CUDA_RESERVE if device == "cuda" else 0
    counted = count_parameters(config)
    needs = {
        name: estimate_memory(config, name, new_tokens, device, counted) for name in PRECISIONS
    }
    totals = {name: sum(need) + reserve for name, need in needs.items()}
    if totals[precision] <= free:
        return needs[precision]
    fits = [name for name in PRECISIONS if totals[name] <= free]
    remedy = (
        f"--config.descriptions.llava.precision={fits[-1]} would fit"
        if fits
        else f"not even {min(totals, key=totals.__getitem__)} would fit; use a larger device or a "
        "server (--config.descriptions.engine=openai)"
    )
    raise EngineError(
        f"too little memory on the {device}: {precision} needs {totals[precision] / 2**30:.1f} GiB "
        f"for the weights and one description, and {free / 2**30:.1f} GiB are free; {remedy}"
    )
