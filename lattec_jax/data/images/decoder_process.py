"""A process that decodes images for the one that started it (`decoder_pool`), by messages.

A message is a line of JSON on the standard input: the name of a method of `Decoder` and its
arguments. Those that return something are answered by a line on the standard output. The process
ends with its input, so it does not outlive the one that started it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from typing import Any

from PIL import Image, ImageFile

from lattec_jax.data.images import preprocess
from lattec_jax.data.images.decoder import Decoder

UNANSWERED = ("open", "write")  # their errors come with the next answer


def pillow_settings() -> dict[str, Any]:
    """Return what a program may have set for all images that it reads with Pillow."""
    with warnings.catch_warnings(record=True):
        try:
            category = Image.DecompressionBombWarning
            warnings.warn_explicit("", category, Image.__name__, 0, Image.__name__, {})
            refused = False
        except Image.DecompressionBombWarning:
            refused = True
    return {
        "max_pixels": Image.MAX_IMAGE_PIXELS,
        "truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
        "refuse_large": refused,
    }


class _Paths(logging.Handler):
    """Collects the images with 16 bits per pixel that `preprocess` warns of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found += record.args or ()  # pyright: ignore[reportOperatorIssue]  # a tuple of paths


def main(settings: dict[str, Any]) -> None:
    """Answer messages; `settings` is the result of `pillow_settings` in the other process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    Image.MAX_IMAGE_PIXELS = settings["max_pixels"]
    ImageFile.LOAD_TRUNCATED_IMAGES = settings["truncated"]
    paths = _Paths()
    logging.getLogger(preprocess.__name__).addHandler(paths)
    logging.getLogger(preprocess.__name__).propagate = False
    decoder, error = Decoder(), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if settings["refuse_large"]:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            result = None
            try:
                result = getattr(decoder, name)(*arguments)
            except OSError as found:  # a full disk
                error = error or [found.errno, found.strerror]
            if name in UNANSWERED:
                continue
            texts = [(warning.category.__name__, str(warning.message)) for warning in caught]
            answer = {"result": result, "error": error, "warnings": texts, "paths": paths.found}
            try:
                print(json.dumps(answer), file=answers, flush=True)
            except BrokenPipeError:  # the other process was killed
                os._exit(1)
            caught.clear()
            paths.found.clear()
