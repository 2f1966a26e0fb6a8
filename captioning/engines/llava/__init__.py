"""LLaVA-NeXT through transformers on one GPU: the paper's captioning model (LLaVA 1.6 Mistral 7B).

The linear layers of the language model are quantized by bitsandbytes; the vision tower and the
projector are not.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ml_collections import ConfigDict

from captioning.engines import Identity
from captioning.engines.llava import loading
from captioning.engines.llava.checkpoint import check_path
from captioning.engines.llava.engine import LlavaEngine
from captioning.engines.llava.memory import max_batch_size

SMALL_FILE_BYTES = 2**20  # only the size of a larger checkpoint file is part of the identity

# One process per GPU: more tokenizer threads gain nothing beside the decoding threads.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def identity(config: ConfigDict) -> Identity:
    """Return the model with its revision, or with a digest of its directory, and the decoding."""
    settings = config.descriptions.llava
    name = settings.model
    check_path(name)  # the digest needs the files
    if Path(name).is_dir():
        name = f"{Path(name).resolve().name}@{_digest(Path(name))}"
    elif settings.revision:
        name = f"{name}@{settings.revision}"
    tokens = config.descriptions.max_new_tokens
    return Identity("llava", name, f"{settings.precision}, greedy, at most {tokens} new tokens")


def _digest(directory: Path) -> str:
    """Hash a checkpoint's file names, sizes, and the content of its small files."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            if size < SMALL_FILE_BYTES:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def processes(config: ConfigDict) -> int:
    """Return the number of GPUs that PyTorch can use, at least 1."""
    if config.descriptions.llava.device == "cpu":
        return 1
    try:
        import torch
    except ImportError:  # `load` reports what to install
        return 1
    return max(1, torch.cuda.device_count())


def load(config: ConfigDict) -> LlavaEngine:
    """Load the model."""
    settings, tokens = config.descriptions.llava, config.descriptions.max_new_tokens
    model, processor, need = loading.load(settings, tokens)
    batch_size = settings.batch_size or max_batch_size(need, model.device.type)
    return LlavaEngine(identity(config), model, processor, batch_size, tokens)
