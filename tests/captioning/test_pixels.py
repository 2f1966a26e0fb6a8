"""The engine `pixels`: descriptions of shapes and groups, and what they never contain."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageOps

from captioning.engines import Failure, Request
from captioning.engines.pixels import load
from lattec_jax.data.datasets.digits import CLASS_NAMES
from lattec_jax.data.glyphs import attributes, describe_image
from lattec_jax.data.images.preprocess import open_image


def drawing(*strokes: tuple[str, tuple[int, ...]], side: int = 60) -> Image.Image:
    """Light strokes, 6 pixels wide, on a dark ground."""
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    for shape, box in strokes:
        if shape == "line":
            draw.line(box, 255, 6)
        else:
            draw.ellipse(box, outline=255, width=6)
    return image


RING = drawing(("ring", (12, 6, 46, 54)))
EIGHT = drawing(("ring", (16, 4, 44, 32)), ("ring", (16, 27, 44, 56)))
CORNER = drawing(("line", (15, 5, 15, 53)), ("line", (12, 53, 48, 53)))
TOP_RING = drawing(("ring", (15, 4, 42, 31)), ("line", (39, 18, 39, 56)))
CUP = drawing(("line", (12, 8, 12, 50)), ("line", (10, 50, 50, 50)), ("line", (48, 8, 48, 50)))
POST = drawing(("line", (30, 5, 30, 55)))


def request(*images: Image.Image) -> Request:
    return Request(image_id="x", kind="image", prompt="", images=images)


def said(requests: list[Request]) -> list[str]:
    """A new engine's texts, which come in the order of the requests."""
    engine = load(ConfigDict())
    answers = list(engine.describe(iter(requests)))
    assert [request for request, _ in answers] == requests
    return [text for _, text in answers]


def test_a_ring_has_one_large_loop() -> None:
    found = attributes(RING)
    assert found["loops"] == "a large loop"
    assert found["loop position"] == "loop in the middle"
    assert found["mirror"] == "mirror symmetric"
    assert found["turn"] == "turn symmetric"
    assert found["upper"] == "upper strokes on both sides"


def test_two_rings_are_a_pair_of_loops() -> None:
    assert attributes(EIGHT)["loops"] == "a pair of loops"


def test_a_corner_has_an_upright_and_a_bar() -> None:
    found = attributes(CORNER)
    assert found["loops"] == "no loop"
    assert found["bottom bar"] and found["left upright"]
    assert not found["top bar"] and not found["right upright"]
    assert found["weight"] == "bottom heavy" and found["lean"] == "left heavy"


def test_a_small_loop_has_a_position() -> None:
    found = attributes(TOP_RING)
    assert (found["loops"], found["loop position"]) == ("a small loop", "loop at the top")
    turned = attributes(TOP_RING.transpose(Image.Transpose.ROTATE_180))
    assert turned["loop position"] == "loop at the bottom"


@pytest.mark.parametrize(
    ("turn", "side"),
    [
        (None, "open top"),
        (Image.Transpose.ROTATE_180, "open bottom"),
    ],
)
def test_a_cup_is_open_to_one_side(turn: Image.Transpose | None, side: str) -> None:
    found = attributes(CUP if turn is None else CUP.transpose(turn))
    assert [name for name in found if name.startswith("open") and found[name]] == [side]


def test_a_cup_on_its_side_is_open_to_the_right_above_and_below() -> None:
    found = attributes(CUP.transpose(Image.Transpose.ROTATE_270))
    assert found["open right above"] and found["open right below"]
    assert not found["open left above"] and not found["open top"]


def test_a_post_is_narrow() -> None:
    assert attributes(POST)["width"] == "narrow"


def test_ink_may_be_dark_on_light_and_of_any_size() -> None:
    assert attributes(ImageOps.invert(RING)) == attributes(RING)
    wide = Image.new("RGB", (400, 200), "white")
    wide.paste(ImageOps.invert(CORNER).resize((180, 180)), (100, 10))
    assert attributes(wide)["left upright"] == "left upright"


def test_nothing_is_seen_in_an_empty_image() -> None:
    assert attributes(Image.new("L", (8, 8))) == {}
    assert describe_image(Image.new("L", (8, 8))) == "a faint mark"
    assert isinstance(describe_image(Image.new("L", (1, 1), 7)), str)


def test_a_group_is_described_by_what_most_images_share() -> None:
    (text,) = said([request(RING, RING, RING, CORNER)])
    assert text == describe_image(RING)
    (text,) = said([request(RING, RING, CORNER, CORNER)])
    assert "loop" not in text  # two against two


def test_the_same_images_get_the_same_words() -> None:
    requests = [request(RING), request(EIGHT, CORNER, EIGHT), request(POST)]
    once = said(requests)
    assert once == said(requests)
    assert once[::-1] == said(requests[::-1])


def test_no_description_of_a_digit_names_a_class() -> None:
    from sklearn.datasets import load_digits

    images = [Image.fromarray((p * 15.9375).astype(np.uint8)) for p in load_digits().images[:300]]
    singles = [request(image) for image in images]
    groups = [request(*images[i : i + 4]) for i in range(0, 300, 4)]
    texts = said(singles + groups)
    words = set(re.findall(r"[a-z]+", " ".join(texts)))
    assert not words & set(CLASS_NAMES)
    assert not re.search(r"\d", " ".join(texts))
    assert max(len(text.split()) for text in texts) <= 25
    assert len(set(texts)) > 100


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "I", "I;16", "F", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"],
)
def test_every_mode_is_described(mode, tmp_path) -> None:
    image = RING.convert("RGB" if mode in ("LAB", "HSV", "YCbCr", "PA") else "L")
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert said([request(image)]) == said([request(RING)])
    if mode in ("LAB", "I;16", "F", "CMYK"):
        image.save(tmp_path / "image.tiff")
        assert said([request(open_image(tmp_path / "image.tiff"))]) == said([request(RING)])


def test_values_that_are_not_finite_are_described() -> None:
    pixels = np.full((30, 30), np.nan, np.float32)
    pixels[10:20] = np.inf
    (text,) = said([request(Image.fromarray(pixels))])
    assert isinstance(text, str) and "nan" not in text


def test_an_image_that_cannot_be_converted_is_a_failure(monkeypatch) -> None:
    class Odd:
        mode, size = "ODD", (4, 4)

        def tobytes(self) -> bytes:
            return b""

        def convert(self, mode: str) -> Image.Image:
            raise ValueError("conversion from ODD to L not supported")

    first, second = said([request(Odd()), request(RING)])
    assert first == Failure("ValueError: conversion from ODD to L not supported")
    assert isinstance(second, str)
