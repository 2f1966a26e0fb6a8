"""A tiny LLaVA-NeXT with random weights, of the real classes of transformers.

Tiles have 28 pixels and 16 tokens (the 7B model: 336 and 576). The kinds of grid, layers, chat
template and tokenizer are those of the 7B model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import common
from tests.torch_fix import define_missing_torchvision_operators

# The template of llava-hf/llava-v1.6-mistral-7b-hf, without the roles that are not used here.
TEMPLATE = (
    "{% for message in messages %}{{ '[INST] ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}{{ ' [/INST]' }}{% endfor %}"
)
GRID = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # tiles, rows by columns
_SPECIAL = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
_CORPUS = (
    "Describe the object in the photo concisely, using less than 20 words. [INST] [/INST]",
    "a red square on a white wall, a blue circle beside the green river, one narrow black line",
)


def transformers() -> Any:
    """Return the module; skip the test if one of the captioning packages is missing."""
    for package in ("torch", "accelerate", "bitsandbytes"):
        pytest.importorskip(package)
    define_missing_torchvision_operators()
    return pytest.importorskip("transformers")


def configuration(hidden: int = 64, layers: int = 2, tile: int = 28, patch: int = 7) -> Any:
    """Return a `LlavaNextConfig` with `layers` Mistral layers of width `hidden`.

    Args:
        hidden: a multiple of 64.
        layers: of the language model; the vision tower has three.
        tile: pixels of a tile's side, a multiple of `patch`.
        patch: pixels of a patch's side.
    """
    module = transformers()
    vision = module.CLIPVisionConfig(
        hidden_size=hidden // 2,
        intermediate_size=hidden,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=tile,
        patch_size=patch,
        projection_dim=16,
    )
    text = module.MistralConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 32,
        head_dim=16,
        max_position_embeddings=4096,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=4,
    )
    return module.LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=3,
        image_grid_pinpoints=[[tile * rows, tile * columns] for rows, columns in GRID],
        image_seq_length=(tile // patch) ** 2,
    )


def of_7b() -> Any:
    """Return the configuration of llava-v1.6-mistral-7b-hf, as on the hub."""
    module = transformers()
    return module.LlavaNextConfig(
        vision_config=module.CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        text_config=module.MistralConfig(
            vocab_size=32064, rope_theta=1e6, sliding_window=None, num_key_value_heads=8
        ),
        image_token_index=32000,
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    )


def processor(config: Any) -> Any:
    """Return a `LlavaNextProcessor` with a byte-level tokenizer of 400 tokens."""
    import tokenizers

    module = transformers()
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(_SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(_CORPUS, trainer)
    trained.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = module.PreTrainedTokenizerFast(
        tokenizer_object=trained,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    side = config.vision_config.image_size
    return module.LlavaNextProcessor(
        module.LlavaNextImageProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=config.image_grid_pinpoints,
        ),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def model(config: Any, seed: int = 0) -> Any:
    """Return a model with random weights, large enough that its text depends on the image."""
    import torch

    torch.manual_seed(seed)
    made = transformers().LlavaNextForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, (2.0 if "proj" in name else 1.0) / weight.shape[-1] ** 0.5)
    return made


def save(folder: Path, **sizes: int) -> Path:
    """Write a checkpoint for `from_pretrained`; `sizes`: see `configuration`."""
    config = configuration(**sizes)
    model(config).save_pretrained(folder)
    processor(config).save_pretrained(folder)
    return folder


def use_changed_copy(
    config: ConfigDict, folder: Path, file: str, change: Callable[[Path], object]
) -> None:
    """Point the configuration to a copy of its checkpoint in which one file is changed."""
    copy = shutil.copytree(config.descriptions.llava.model, folder / "changed")
    change(copy / file)
    config.descriptions.llava.model = str(copy)


def make_config(checkpoint: Path) -> ConfigDict:
    """A configuration whose engine is a checkpoint, in float32."""
    config = common.get_config()
    config.descriptions.engine = "llava"
    config.descriptions.max_new_tokens = 12
    config.descriptions.llava.model = str(checkpoint)
    config.descriptions.llava.precision = "float32"
    return config
