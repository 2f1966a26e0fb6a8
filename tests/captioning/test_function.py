"""The engine that calls a Python function."""

from __future__ import annotations

import pytest
from PIL import Image

from captioning.engines import Failure, Identity, Request
from captioning.engines.function import BATCH_SIZE, FunctionEngine
from lattec_jax.runtime.errors import EngineError

IDENTITY = Identity("function-mine", "v1", "")


def requests(count: int, members: int = 1) -> list[Request]:
    images = tuple(Image.new("L", (5 + n, 4), 40 * n) for n in range(members))
    return [Request(f"{n}.png", "image", "", images) for n in range(count)]


def test_each_image_gets_its_text():
    calls = []

    def function(images):
        calls.append([(image.mode, image.size) for image in images])
        return (f"text {len(calls)}.{n}" for n in range(len(images)))  # a generator will do

    asked = requests(BATCH_SIZE + 1)
    found = list(FunctionEngine(function, IDENTITY).describe(iter(asked)))
    assert [request for request, _ in found] == asked
    assert [text for _, text in found][-2:] == [f"text 1.{BATCH_SIZE - 1}", "text 2.0"]
    assert calls[1] == [("RGB", (5, 4))]
    list(FunctionEngine(function, IDENTITY).describe(requests(1, members=4)))
    assert calls[-1] == [("RGB", (672, 672))]  # the collage of a group


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "function-mine returned 'one text' for 2 images; expected a list"),
        (None, "returned None for 2 images"),
        (["one"], "returned 1 texts for 2 images; expected one for each"),
        (["one", None], r"returned None \(NoneType\) for an image; expected a text"),
    ],
)
def test_other_answers_are_refused(texts, message):
    with pytest.raises(EngineError, match=message):
        list(FunctionEngine(lambda images: texts, IDENTITY).describe(requests(2)))


def test_an_image_that_cannot_be_converted_is_a_failure_of_its_request():
    asked = requests(3)
    asked[1] = Request("1.png", "group", "", ())  # `collage` raises ValueError
    found = FunctionEngine(lambda images: ["text"] * len(images), IDENTITY).describe(asked)
    results = {request.image_id: result for request, result in found}
    assert results["0.png"] == results["2.png"] == "text"
    assert results["1.png"] == Failure("ValueError: expected at least one image")
