"""A captioning engine that looks only at the pixels of a glyph: no network, no language model.

`lattec_jax.data.glyphs` says what is measured and how it is put into words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict
from PIL import Image

from captioning.engines import UNFIT, Failure, Identity, Request, unfit
from lattec_jax.data.glyphs import Attributes, attributes, say


def identity(config: ConfigDict) -> Identity:
    """Raise the number when the same image would get other words."""
    return Identity("pixels", "strokes-1", "")


def processes(config: ConfigDict) -> int:
    """One: a set is described in seconds."""
    return 1


def load(config: ConfigDict) -> PixelsEngine:
    """Nothing is loaded."""
    return PixelsEngine(identity(config))


class PixelsEngine:
    """Describes images of single glyphs. Deterministic; takes a few milliseconds per image."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        # An image is measured once, however many groups it is a member of.
        self._measured: dict[bytes, Attributes] = {}

    def describe(self, requests: Iterable[Request]) -> Iterator[tuple[Request, str | Failure]]:
        """Say of each request's image what it is like, or what most of its images share.

        The prompt is not read: this engine has nothing to be asked.
        """
        for request in requests:
            try:
                answer = say([self._attributes(image) for image in request.images])
            except UNFIT as error:
                answer = unfit(error)
            yield request, answer

    def _attributes(self, image: Image.Image) -> Attributes:
        header = f"{image.mode} {image.size} ".encode()
        key = hashlib.sha256(header + image.tobytes()).digest()
        if key not in self._measured:
            self._measured[key] = attributes(image)
        return self._measured[key]
