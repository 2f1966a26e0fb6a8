"""Load a LLaVA-NeXT checkpoint so that it fits, with the vision tower and projector unquantized.

Bytes of llava-hf/llava-v1.6-mistral-7b-hf, computed from its configuration (GiB):

    precision   weights   and for each description of a batch
    nf4             4.4   0.7
    int8            7.6   0.7
    bfloat16       14.1   0.7
    float32        28.2   1.4
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from captioning.engines.chat_template import check_chat_template
from lattec_jax.runtime.errors import EngineError, short_repr
from lattec_jax.runtime.safe_read import read_json

# Bytes for a weight of the language model's linear layers, and for every other parameter. Double
# quantization: 4 bits, 8 for each block of 64 and 32 for each 256 blocks (QLoRA, Sec. 3).
PRECISIONS = {
    "nf4": (0.5 + 1 / 64 + 4 / (64 * 256), 2),
    "int8": (1, 2),
    "bfloat16": (2, 2),
    "float32": (4, 4),
}
# As transformers 5 names them; without "model." everything is quantized.
UNQUANTIZED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
LARGE = 1e9  # parameters of a model that is not run on a CPU unless it is asked for
RESERVE = 2**30  # bytes left for the CUDA context and the allocator
_MAX_INDEX_BYTES = 2**24
# What transformers raises at files that it cannot read, which it otherwise trusts.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)
INSTALL = "pip install -e '.[captioning]'"


class Memory(NamedTuple):
    """Bytes."""

    weights: int
    each: int  # for one description of a batch: its key-value cache and activations


def load(settings: ConfigDict, new_tokens: int) -> tuple[Any, Any, Memory]:
    """Load the model that `config.descriptions.llava` names.

    Args:
        settings: `config.descriptions.llava`.
        new_tokens: at most, in a description.

    Returns:
        The `LlavaNextForConditionalGeneration`, its processor, and the memory that they need.

    Raises:
        EngineError: a package, the checkpoint, a GPU or memory is missing.
    """
    quantized = settings.precision in ("nf4", "int8")
    check_path(settings.model)
    _check_packages(quantized)
    import torch
    import transformers
    from safetensors import SafetensorError

    where = {"revision": settings.revision or None}
    _refuse_adapter(settings.model, where)
    config = _configuration(settings.model, where)
    _check_shards(Path(settings.model))
    device = choose_device(settings, config)
    need = memory(config, settings.precision, new_tokens, device)
    check_memory(config, settings.precision, new_tokens, free_memory(device), device)
    dtype = torch.float32 if bytes_of_others(settings.precision, device) == 4 else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "device_map": device, **where}
    options["ignore_mismatched_sizes"] = True  # they are refused below
    if quantized:
        options["quantization_config"] = _quantization(settings.precision, dtype)
        # It warns at each call that it casts to half precision.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    try:
        processor = transformers.LlavaNextProcessor.from_pretrained(
            settings.model, trust_remote_code=False, **where
        )
        model, report = transformers.LlavaNextForConditionalGeneration.from_pretrained(
            settings.model,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    except (*_UNREADABLE, SafetensorError) as error:
        raise EngineError(_unloadable(settings.model, error)) from error
    _check_complete(settings.model, report, processor)
    if quantized:
        check_quantized(model)
    prepare_for_batches(model, processor)
    return model.eval(), processor, need


def _check_complete(name: str, report: dict[str, Any], processor: Any) -> None:
    """Refuse what transformers fills with random numbers, or what cannot be prompted."""
    absent = sorted(report["missing_keys"])
    misshapen = sorted(key for key, *_ in report["mismatched_keys"])
    if absent or misshapen:
        raise EngineError(
            f"{name} does not fit its config.json: {len(absent)} weights are missing and "
            f"{len(misshapen)} have another shape, the first {[*absent, *misshapen][0]}; download "
            "it again"
        )
    if processor.chat_template is None:
        raise EngineError(
            f"{name} has no chat template (chat_template.jinja or chat_template.json), so it is "
            "not known how to put a prompt to it; take another revision, or a checkpoint such as "
            "llava-hf/llava-v1.6-mistral-7b-hf"
        )
    check_chat_template(processor.chat_template, f"config.descriptions.llava.model: {name}")


def prepare_for_batches(model: Any, processor: Any) -> None:
    """Left padding and greedy decoding, whatever the checkpoint's files say."""
    import transformers

    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    # Older checkpoints leave these to the model's configuration.
    config = model.config
    processor.patch_size = processor.patch_size or config.vision_config.patch_size
    processor.vision_feature_select_strategy = (
        processor.vision_feature_select_strategy or config.vision_feature_select_strategy
    )
    ends = model.generation_config.eos_token_id
    # A fresh one: the checkpoint's may also penalize repetition or set a least length.
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        num_beams=1,
        eos_token_id=processor.tokenizer.eos_token_id if ends is None else ends,
        pad_token_id=processor.tokenizer.pad_token_id,
    )


def _check_packages(quantized: bool) -> None:
    wanted = ["torch", "torchvision", "transformers", "accelerate"]
    wanted += ["bitsandbytes"] if quantized else []
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(f"engine llava needs {', '.join(missing)}; install: {INSTALL}")
    for name in wanted:
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError) as error:
            # Above all a torchvision that was built for another torch.
            raise EngineError(
                f"engine llava needs {name}, which cannot be imported ({error}); install "
                f"versions that fit each other: {INSTALL}"
            ) from error


def _check_shards(directory: Path) -> None:
    """Raise EngineError where the index of a local checkpoint names files elsewhere."""
    path = directory / "model.safetensors.index.json"
    if not path.exists():
        return
    try:
        index = read_json(path, _MAX_INDEX_BYTES)
        names = set(index["weight_map"].values())
        elsewhere = [name for name in names if os.path.basename(name) != name]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise EngineError(
            f"config.descriptions.llava.model: {path} is no index of weights ({error}); download "
            "the checkpoint again"
        ) from error
    if elsewhere:
        raise EngineError(
            f"config.descriptions.llava.model: expected {path} to name files of its folder, found "
            f"{short_repr(elsewhere)}; choose another checkpoint"
        )


def _refuse_adapter(name: str, where: dict[str, Any]) -> None:
    """Raise EngineError where a checkpoint has an adapter, which may name another repository."""
    from transformers.utils import find_adapter_config_file

    try:
        # As transformers itself looks for it where the package peft is installed.
        found = find_adapter_config_file(name, **where)
    except _UNREADABLE as error:
        raise EngineError(_unloadable(name, error)) from error
    if found is not None:
        raise EngineError(
            f"config.descriptions.llava.model: expected a whole checkpoint, found an adapter "
            f"(adapter_config.json) in {name}; merge it into its model, or choose another "
            "checkpoint"
        )


def _configuration(name: str, where: dict[str, Any]) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
    except _UNREADABLE as error:
        raise EngineError(_unloadable(name, error)) from error
    if config.model_type != "llava_next":
        raise EngineError(
            f"config.descriptions.llava.model: expected a LLaVA-NeXT checkpoint (model_type "
            f"llava_next), found {config.model_type} in {name}; serve other models to the engine "
            "openai"
        )
    for part in (config, config.text_config, config.vision_config):
        attention = getattr(part, "_attn_implementation", None)
        if attention not in (None, "eager", "sdpa"):  # others are code, which may be of the hub
            raise EngineError(
                f"config.descriptions.llava.model: the configuration of {name} asks for the "
                f"attention {short_repr(attention)}; expected eager, sdpa or nothing. Remove it"
            )
    if getattr(config, "quantization_config", None):
        raise EngineError(
            f"config.descriptions.llava.model: expected unquantized weights, which "
            f"config.descriptions.llava.precision then quantizes; {name} is quantized already"
        )
    return config


def check_path(name: str) -> None:
    """Raise EngineError where `config.descriptions.llava.model` is a path to no directory."""
    if name.startswith(("/", "./", "../", "~")) and not os.path.isdir(name):
        raise EngineError(f"config.descriptions.llava.model: there is no directory {name}")


def _unloadable(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    return (
        f"config.descriptions.llava.model: {name!r} cannot be loaded ({reason}). Name a directory, "
        "or a checkpoint of the hub such as llava-hf/llava-v1.6-mistral-7b-hf; without a network, "
        f"fetch it elsewhere with: hf download {name}, and copy its folder or the hub's cache "
        "(HF_HOME)"
    )


def _quantization(precision: str, dtype: Any) -> Any:
    import transformers

    if precision == "int8":
        return transformers.BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_skip_modules=list(UNQUANTIZED)
        )
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(UNQUANTIZED),
    )


def check_quantized(model: Any) -> None:
    """All linear layers of the language model and no others are quantized.

    Raises:
        EngineError: names of modules have changed, and with them what is quantized.
    """
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    wrong = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            quantized = isinstance(module, (Linear4bit, Linear8bitLt))
            if quantized == name.startswith(UNQUANTIZED):
                wrong.append(name)
    if wrong:
        raise EngineError(
            f"{len(wrong)} linear layers, the first {wrong[0]}, are quantized where they should "
            "not be, or the reverse; this version of transformers names modules differently. "
            f"Install the versions that were tested ({INSTALL}) or choose the precision bfloat16"
        )


def choose_device(settings: ConfigDict, config: Any) -> str:
    """ "cuda" or "cpu".

    Raises:
        EngineError: no GPU, and the model is large.
    """
    import torch

    if settings.device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    size = sum(count_parameters(config))
    if settings.device == "cuda" or size > LARGE:
        raise EngineError(
            f"no GPU that PyTorch {torch.__version__} can use, and {settings.model} has "
            f"{size / 1e9:.1f}e9 parameters. Describe on a machine with a GPU, use a server that "
            "has one (--config.descriptions.engine=openai), or wait minutes for each description "
            "with --config.descriptions.llava.device=cpu"
        )
    return "cpu"


def count_parameters(config: Any) -> tuple[int, int]:
    """Parameters of the linear layers that can be quantized, and all others."""
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


def longest_image(config: Any) -> int:
    """Tokens of the image that takes the most: all tiles of the largest grid."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    grids = [
        (height // vision.image_size * side) * (width // vision.image_size * side + 1)
        for height, width in config.image_grid_pinpoints
    ]
    return side * side + max(grids)


def bytes_of_others(precision: str, device: str) -> int:
    """Bytes of an activation, and of a parameter that is not quantized.

    On the CPU what is quantized computes in float32.
    """
    return 4 if device == "cpu" and precision in ("nf4", "int8") else PRECISIONS[precision][1]


def memory(
    config: Any,
    precision: str,
    new_tokens: int,
    device: str = "cuda",
    counted: tuple[int, int] | None = None,
) -> Memory:
    """What a model of this configuration needs in a precision of `PRECISIONS`.

    Args:
        config: of the model.
        precision: of its weights.
        new_tokens: of a description, at most.
        device: "cuda" or "cpu".
        counted: `count_parameters(config)`, where it is known already.
    """
    linear, others = counted or count_parameters(config)
    of_linear, of_others = PRECISIONS[precision][0], bytes_of_others(precision, device)
    text, vision = config.text_config, config.vision_config
    tokens = longest_image(config) + 128 + new_tokens  # 128: the prompt
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head * tokens
    tiles = 1 + max(h * w // vision.image_size**2 for h, w in config.image_grid_pinpoints)
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    # The widest layer of each tower: gate, product and projection; queries to values and the MLP.
    activations = 3 * tokens * text.intermediate_size + 3 * tiles * patches * (
        vision.hidden_size + vision.intermediate_size
    )
    return Memory(
        int(linear * of_linear + others * of_others), int((cache + activations) * of_others)
    )


def free_memory(device: str) -> int:
    """Bytes that are free on the device."""
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":") for line in file)
    return int(lines["MemAvailable"].split()[0]) * 1024


def check_memory(config: Any, precision: str, new_tokens: int, free: int, device: str) -> None:
    """Raise EngineError where not even one description at a time fits; says what would."""
    reserve = RESERVE if device == "cuda" else 0
    counted = count_parameters(config)

    def total(name: str) -> int:
        return sum(memory(config, name, new_tokens, device, counted)) + reserve

    if total(precision) <= free:
        return
    fits = [name for name in PRECISIONS if total(name) <= free]
    remedy = (
        f"--config.descriptions.llava.precision={fits[-1]} would fit"
        if fits
        else f"not even {min(PRECISIONS, key=total)} would fit; use a larger device or a server "
        "(--config.descriptions.engine=openai)"
    )
    raise EngineError(
        f"too little memory on the {device}: {precision} needs {total(precision) / 2**30:.1f} GiB "
        f"for the weights and one description, and {free / 2**30:.1f} GiB are free; {remedy}"
    )
