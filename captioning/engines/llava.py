"""LLaVA-NeXT through transformers, on one GPU: the paper's describer (LLaVA 1.6 Mistral 7B, 4-bit).

Greedy decoding of whole batches; the next batch is prepared while one is generated. Linear layers
of the language model are quantized by bitsandbytes, the vision tower and the projector never.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from captioning.collage import single_image
from captioning.engines import UNFIT, Failure, Identity, Request, unfit
from captioning.engines import llava_loading as loading
from lattec_jax.runtime.errors import EngineError

LARGEST_BATCH = 64  # beyond it a batch waits for its longest description
SHARE = 0.8  # of the free memory that a batch may take
AHEAD = 2  # batches that are prepared while one is generated
SMALL_FILE = 2**20  # bytes; of larger files of a checkpoint only the size is part of its identity


def identity(config: ConfigDict) -> Identity:
    """The model with its revision, or the content of a directory; and how it decodes.

    Raises:
        EngineError: the directory is not there.
    """
    settings = config.descriptions.llava
    name = settings.model
    loading.check_path(name)  # without its content a directory has no identity
    if Path(name).is_dir():
        name = f"{Path(name).resolve().name}@{_digest(Path(name))}"
    elif settings.revision:
        name = f"{name}@{settings.revision}"
    tokens = config.descriptions.max_new_tokens
    return Identity("llava", name, f"{settings.precision}, greedy, at most {tokens} new tokens")


def _digest(directory: Path) -> str:
    """Changes with the files of a checkpoint: their names, sizes, and the content of small ones."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            if size < SMALL_FILE:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def processes(config: ConfigDict) -> int:
    """One for each GPU that PyTorch sees and may use, at least one."""
    if config.descriptions.llava.device == "cpu":
        return 1
    try:
        import torch
    except ImportError:  # `load` says what to install
        return 1
    return max(1, torch.cuda.device_count())


def load(config: ConfigDict) -> LlavaEngine:
    """Load the model. Raises EngineError, see `llava_loading.load`."""
    settings, tokens = config.descriptions.llava, config.descriptions.max_new_tokens
    model, processor, memory = loading.load(settings, tokens)
    batch_size = settings.batch_size
    if not batch_size:
        free = loading.free_memory(model.device.type)
        batch_size = min(LARGEST_BATCH, max(1, int(SHARE * free / memory.each)))
    return LlavaEngine(identity(config), model, processor, batch_size, tokens)


@dataclasses.dataclass
class _Batch:
    """Requests, and what the model is given for them."""

    requests: list[Request]
    inputs: Any  # None: not prepared


class LlavaEngine:
    """Describes images, and groups as collages."""

    def __init__(
        self, identity: Identity, model: Any, processor: Any, batch_size: int, new_tokens: int
    ) -> None:
        self.identity = identity
        self.batch_size = batch_size  # halved when memory runs out
        self._model, self._processor, self._new_tokens = model, processor, new_tokens

    def describe(self, requests: Iterable[Request]) -> Iterator[tuple[Request, str | Failure]]:
        """See `Engine`. Answers come batch by batch.

        Raises:
            EngineError: the device no longer works.
        """
        wanted = iter(requests)
        ahead: deque[Future[_Batch]] = deque()
        with ThreadPoolExecutor(AHEAD) as pool:
            while True:
                batch = list(islice(wanted, self.batch_size))
                if batch:
                    ahead.append(pool.submit(self._prepare, batch))
                if not ahead:
                    return
                if len(ahead) > AHEAD or not batch:
                    yield from self._answer(ahead.popleft().result())

    def prompt(self, text: str) -> str:
        """The text as the model sees it: the checkpoint's chat template with one image."""
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        return self._processor.apply_chat_template([turn], add_generation_prompt=True)

    def _prepare(self, requests: list[Request]) -> _Batch:
        try:
            inputs = self._inputs(requests)
        except UNFIT:
            inputs = None  # one of them cannot be shown: each is tried by itself
        return _Batch(requests, inputs)

    def _inputs(self, requests: Sequence[Request]) -> Any:
        """Token ids `[B, L]`, padded on the left, and tiles `[B, T, 3, S, S]`."""
        images = [single_image(request.images) for request in requests]
        texts = [self.prompt(request.prompt) for request in requests]
        start = self._processor.tokenizer.bos_token
        # Some templates write the beginning of the text themselves.
        written = start is not None and texts[0].startswith(start)
        return self._processor(
            images=images,
            text=texts,
            padding=True,
            add_special_tokens=not written,
            return_tensors="pt",
        )

    def _answer(self, batch: _Batch) -> Iterator[tuple[Request, str | Failure]]:
        """All answers of a batch, in halves or one by one where it does not work as a whole."""
        import torch

        requests = batch.requests
        # Batches that were prepared before memory ran out are larger than what is known to fit.
        size = self.batch_size
        if len(requests) <= size:
            try:
                texts = self._generate(batch)
            except torch.OutOfMemoryError:
                if len(requests) == 1:
                    yield requests[0], Failure("too little memory for a single description")
                    return
                self.batch_size = size = len(requests) // 2
            except UNFIT as error:
                if "CUDA error" in str(error):  # nothing works after it
                    message = f"the GPU failed: {error}; start the command again"
                    raise EngineError(message) from error
                if len(requests) == 1:
                    yield requests[0], unfit(error)
                    return
                size = 1
            else:
                yield from zip(requests, texts, strict=True)
                return
            torch.cuda.empty_cache()  # only here no exception holds the tensors any more
        for first in range(0, len(requests), size):
            yield from self._answer(_Batch(requests[first : first + size], None))

    def _generate(self, batch: _Batch) -> list[str]:
        import torch

        inputs = batch.inputs
        if inputs is None:
            inputs = self._inputs(batch.requests)
        length = inputs["input_ids"].shape[1]
        limit = self._model.config.text_config.max_position_embeddings
        if length + self._new_tokens > limit:
            raise ValueError(
                f"image and prompt take {length} tokens; with {self._new_tokens} new ones that "
                f"is more than the {limit} that the model can see"
            )
        inputs = inputs.to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        with torch.inference_mode():
            found = self._model.generate(**inputs, max_new_tokens=self._new_tokens)
        return self._processor.batch_decode(found[:, length:], skip_special_tokens=True)


# One process has one GPU: nothing is gained by the tokenizer's threads beside the readers'.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
