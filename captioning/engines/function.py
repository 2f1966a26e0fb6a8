"""An engine that calls a Python function: images in, as many texts out.

`lattec_jax.adapt(..., descriptions=function)` uses it. It is not in `ENGINES`, because no
configuration names a function.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from PIL import Image

from captioning.collage import single_image
from captioning.engines import REQUEST_ERRORS, Failure, Identity, Request, Results
from lattec_jax.runtime.errors import EngineError, short_repr

BATCH_SIZE = 8  # images that the function gets at once

Describe = Callable[[list[Image.Image]], Sequence[str]]


class FunctionEngine:
    """Describes images by a function; a group is one image, the collage of its members."""

    def __init__(self, function: Describe, identity: Identity) -> None:
        self.identity = identity
        self._function = function

    def describe(self, requests: Iterable[Request]) -> Results:
        """Call the function with a list of RGB images.

        Raises:
            EngineError: it returned something else than as many strings.
        """
        requests = iter(requests)
        while batch := list(itertools.islice(requests, BATCH_SIZE)):
            requested, images = [], []
            for request in batch:
                try:
                    images.append(single_image(request.images))
                    requested.append(request)
                except REQUEST_ERRORS as error:
                    yield request, Failure.from_error(error)
            if images:
                texts = self._checked(self._function(images), len(images))
                yield from zip(requested, texts, strict=True)

    def _checked(self, texts: object, count: int) -> list[str]:
        name = self.identity.engine
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise EngineError(
                f"descriptions: {name} returned {short_repr(texts)} for {count} images; expected a "
                "list with a text for each"
            )
        texts = list(texts)
        if len(texts) != count:
            raise EngineError(
                f"descriptions: {name} returned {len(texts)} texts for {count} images; expected "
                "one for each"
            )
        for text in texts:
            if not isinstance(text, str):
                raise EngineError(
                    f"descriptions: {name} returned {short_repr(text)} ({type(text).__name__}) for "
                    "an image; expected a text"
                )
        return texts
