"""Batched greedy generation; the next batches are prepared while one is generated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from captioning.collage import single_image
from captioning.engines import REQUEST_ERRORS, Failure, Identity, Request, Result, Results
from lattec_jax.data.prefetch import prefetch
from lattec_jax.runtime.errors import EngineError

PREFETCH_BATCHES = 2  # batches that are prepared while one is generated


class LlavaEngine:
    """Describes images, and groups as collages."""

    def __init__(
        self, identity: Identity, model: Any, processor: Any, batch_size: int, new_tokens: int
    ) -> None:
        self.identity = identity
        self.batch_size = batch_size  # halved when memory runs out
        self._model, self._processor, self._new_tokens = model, processor, new_tokens

    def describe(self, requests: Iterable[Request]) -> Results:
        """See `Engine.describe`. Results come batch by batch."""
        remaining = iter(requests)
        batches = iter(lambda: list(islice(remaining, self.batch_size)), [])
        ahead = PREFETCH_BATCHES
        with closing(prefetch(self._prepare, batches, threads=ahead, ahead=ahead)) as prepared:
            for batch, inputs in prepared:
                yield from self._describe_batch(batch, inputs)

    def prompt(self, text: str) -> str:
        """Return the text in the checkpoint's chat template, with one image."""
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        return self._processor.apply_chat_template([turn], add_generation_prompt=True)

    def _prepare(self, requests: list[Request]) -> tuple[list[Request], Any]:
        try:
            return requests, self._inputs(requests)
        except REQUEST_ERRORS:  # one request is bad: `_describe_batch` tries each on its own
            return requests, None

    def _inputs(self, requests: Sequence[Request]) -> Any:
        """Return token ids `[B, L]`, padded on the left, and tiles `[B, T, 3, S, S]`."""
        images = [single_image(request.images) for request in requests]
        texts = [self.prompt(request.prompt) for request in requests]
        start = self._processor.tokenizer.bos_token
        # Some templates already contain the start token.
        has_start = start is not None and texts[0].startswith(start)
        return self._processor(
            images=images,
            text=texts,
            padding=True,
            add_special_tokens=not has_start,
            return_tensors="pt",
        )

    def _describe_batch(
        self, requests: list[Request], inputs: Any = None
    ) -> Iterator[tuple[Request, Result]]:
        """Yield the results of a batch; after an error, of its halves or of each request."""
        import torch

        # A batch that was prepared before memory ran out exceeds the size that is known to fit.
        size = self.batch_size
        if len(requests) <= size:
            try:
                texts = self._generate(self._inputs(requests) if inputs is None else inputs)
            except torch.OutOfMemoryError:
                if len(requests) == 1:
                    yield requests[0], Failure("too little memory for a single description")
                    return
                self.batch_size = size = len(requests) // 2
            except REQUEST_ERRORS as error:
                if "CUDA error" in str(error):  # the process's CUDA context is unusable now
                    message = f"the GPU failed: {error}; start the command again"
                    raise EngineError(message) from error
                if len(requests) == 1:
                    yield requests[0], Failure.from_error(error)
                    return
                size = 1
            else:
                yield from zip(requests, texts, strict=True)
                return
            # Outside of the except clause: the exception's traceback refers to the tensors.
            torch.cuda.empty_cache()
        for first in range(0, len(requests), size):
            yield from self._describe_batch(requests[first : first + size])

    def _generate(self, inputs: Any) -> list[str]:
        import torch

        length = inputs["input_ids"].shape[1]
        limit = self._model.config.text_config.max_position_embeddings
        if length + self._new_tokens > limit:
            raise ValueError(
                f"image and prompt take {length} tokens; with {self._new_tokens} new ones that "
                f"is more than the model's maximum of {limit}"
            )
        inputs = inputs.to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        with torch.inference_mode():
            ids = self._model.generate(**inputs, max_new_tokens=self._new_tokens)
        # ids: [B, L + new]; the prompt's tokens come first.
        return self._processor.batch_decode(ids[:, length:], skip_special_tokens=True)
