"""An engine that describes glyphs from their pixels, without a language model.

`lattec_jax.data.glyphs` documents what is measured and how it is worded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ml_collections import ConfigDict
from PIL import Image

from captioning.engines import REQUEST_ERRORS, Failure, Identity, Request, Results
from lattec_jax.data.glyphs import Attributes, attributes, say


def identity(config: ConfigDict) -> Identity:
    """Return the identity; raise its number when the wording changes."""
    return Identity("pixels", "strokes-1", "")


def processes(config: ConfigDict) -> int:
    """Return 1: a data set takes seconds."""
    return 1


def load(config: ConfigDict) -> PixelsEngine:
    """Return the engine; there is nothing to load."""
    return PixelsEngine(identity(config))


class PixelsEngine:
    """Describes images of single glyphs. Deterministic; a few milliseconds per image."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        # An image that is a member of several groups is measured once.
        self._measured: dict[bytes, Attributes] = {}

    def describe(self, requests: Iterable[Request]) -> Results:
        """Describe one image, or what most images of a group have in common.

        The prompt is ignored.
        """
        for request in requests:
            try:
                result = say([self._attributes(image) for image in request.images])
            except REQUEST_ERRORS as error:
                result = Failure.from_error(error)
            yield request, result

    def _attributes(self, image: Image.Image) -> Attributes:
        header = f"{image.mode} {image.size} ".encode()
        key = hashlib.sha256(header + image.tobytes()).digest()
        if key not in self._measured:
            self._measured[key] = attributes(image)
        return self._measured[key]
