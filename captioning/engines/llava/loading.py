"""Load a LLaVA-NeXT checkpoint for batched greedy decoding, quantized as configured."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from captioning.engines.llava import checkpoint
from captioning.engines.llava.memory import (
    UNQUANTIZED,
    Memory,
    available_memory,
    check_memory,
    count_parameters,
    unquantized_bytes,
)
from lattec_jax.runtime.errors import EngineError
from lattec_jax.runtime.extras import install_command

MAX_CPU_PARAMETERS = 1e9  # a larger model runs on the CPU only with device=cpu


def load(settings: ConfigDict, new_tokens: int) -> tuple[Any, Any, Memory]:
    """Load the model that `settings`, `config.descriptions.llava`, names.

    Returns:
        The `LlavaNextForConditionalGeneration`, its processor, and the memory that they need.

    Raises:
        EngineError: a package, the checkpoint, a GPU or memory is missing.
    """
    name, revision, precision = settings.model, settings.revision or None, settings.precision
    quantized = precision in ("nf4", "int8")
    checkpoint.check_path(name)
    _check_packages(quantized)
    import torch
    import transformers
    from safetensors import SafetensorError

    checkpoint.refuse_adapter(name, revision)
    config = checkpoint.read_configuration(name, revision)
    checkpoint.check_weights_index(Path(name))
    device = choose_device(settings, config)
    need = check_memory(config, precision, new_tokens, available_memory(device), device)
    dtype = torch.float32 if unquantized_bytes(precision, device) == 4 else torch.bfloat16
    options: dict[str, Any] = {"revision": revision}
    quantization: dict[str, Any] = {}
    if quantized:
        quantization["quantization_config"] = _quantization(precision, dtype)
        # It warns at each call that it casts to half precision.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    try:
        processor = transformers.LlavaNextProcessor.from_pretrained(
            name, trust_remote_code=False, **options
        )
        loaded: Any = transformers.LlavaNextForConditionalGeneration.from_pretrained(
            name,
            dtype=dtype,
            device_map=device,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # `check_loaded` refuses them with a better message
            **quantization,
            **options,
        )
    except (*checkpoint.UNREADABLE, SafetensorError) as error:
        raise checkpoint.unloadable(name, error) from error
    model, report = loaded
    checkpoint.check_loaded(name, report, processor)
    if quantized:
        check_quantized(model)
    prepare_for_batches(model, processor)
    return model.eval(), processor, need


def prepare_for_batches(model: Any, processor: Any) -> None:
    """Set left padding and greedy decoding, whatever the checkpoint's files contain."""
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
    end_ids = model.generation_config.eos_token_id
    # A new one: the checkpoint's may also set a repetition penalty or a minimum length.
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        num_beams=1,
        eos_token_id=processor.tokenizer.eos_token_id if end_ids is None else end_ids,
        pad_token_id=processor.tokenizer.pad_token_id,
    )


def _check_packages(quantized: bool) -> None:
    packages = ["torch", "torchvision", "transformers", "accelerate"]
    packages += ["bitsandbytes"] if quantized else []
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(
            f"engine llava needs {', '.join(missing)}; install: {install_command('captioning')}"
        )
    for name in packages:
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError) as error:
            # Typically a torchvision that was built for another torch.
            raise EngineError(
                f"engine llava needs {name}, which cannot be imported ({error}); install "
                f"versions that fit each other: {install_command('captioning')}"
            ) from error


def _quantization(precision: str, dtype: Any) -> Any:
    import transformers

    return transformers.BitsAndBytesConfig(
        load_in_8bit=precision == "int8",
        load_in_4bit=precision == "nf4",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(UNQUANTIZED),
    )


def check_quantized(model: Any) -> None:
    """Raise EngineError unless the language model's linear layers, and no others, are quantized."""
    import torch
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

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
            f"Install the versions that were tested ({install_command('captioning')}) or choose "
            "the precision bfloat16"
        )


def choose_device(settings: ConfigDict, config: Any) -> str:
    """Return "cuda" or "cpu"; raise EngineError if there is no GPU and the model is large."""
    import torch

    if settings.device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    size = sum(count_parameters(config))
    if settings.device == "cuda" or size > MAX_CPU_PARAMETERS:
        raise EngineError(
            f"no GPU that PyTorch {torch.__version__} can use, and {settings.model} has "
            f"{size / 1e9:.1f}e9 parameters. Describe on a machine with a GPU, use a server that "
            "has one (--config.descriptions.engine=openai), or wait minutes for each description "
            "with --config.descriptions.llava.device=cpu"
        )
    return "cpu"
