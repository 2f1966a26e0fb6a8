"""The engine behind an OpenAI server: configuration, the check at the start, payload and key."""

from __future__ import annotations

import base64
import io
import logging
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.collage import single_image
from captioning.engines import Failure, Identity, Request, engine_module
from captioning.engines import openai as engine
from captioning.engines.openai.protocol import image_uri, retry_after_seconds
from configs import common
from lattec_jax.runtime.config import validate
from lattec_jax.runtime.errors import ConfigError, EngineError
from tests.captioning.chat_server import MODEL, body, listing, says, status

pytest.importorskip("openai")

KEY = "sk-a-very-secret-key"


@pytest.fixture
def config(server):
    config = common.get_config()
    config.descriptions.engine = "openai"
    config.descriptions.openai.update({"base_url": server.url, "model": MODEL, "retries": 1})
    config.descriptions.openai.key_variable = "LATTEC_TEST_KEY"
    return validate(config)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def request(name: str = "a", *images: Image.Image) -> Request:
    return Request(name, "image", name, images or (noise(5, 4),))


def describe(config, *requests: Request) -> list[str | Failure]:
    openai_engine = engine.OpenAIEngine(engine.identity(config), config.descriptions, backoff=0.01)
    return [text for _, text in openai_engine.describe(requests or [request()])]


def test_the_identity_needs_no_server(config, server):
    server.stop()
    module = engine_module(config)
    assert module.identity(config) == Identity(
        "openai", MODEL, "temperature 0, at most 77 new tokens, long side at most 1344"
    )
    assert module.processes(config) == 1


def test_the_model_must_be_named(config):
    config.descriptions.openai.model = ""
    with pytest.raises(ConfigError, match=r"openai\.model: expected the model as the server names"):
        engine.identity(config)


@pytest.mark.parametrize(
    "models",
    [
        listing("another", MODEL),
        listing(),  # a server that loads models when they are asked for
        status(404),
        status(405),
        body("<html>It works!</html>", "text/html"),
        body("[1, 2]"),
    ],
)
def test_a_server_with_the_model_or_without_a_list_is_loaded(config, server, models):
    server.models = models
    loaded = engine.load(config)
    assert loaded.identity == engine.identity(config)
    assert not server.payloads


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            listing("org/tiny-visio", "b"),
            f"has no model '{MODEL}'; it has org/tiny-visio, b. Did you mean 'org/tiny-visio'?",
        ),
        (listing(*(f"m{i}" for i in range(300))), "it has m0, m1, m2, "),
        (status(401, "no"), "401: no. The key is read from the environment variable LATTEC_TEST"),
        (status(403, "no"), "which is not set"),
        (status(503, "loading"), "503: loading. Wait until it is ready"),
    ],
)
def test_a_server_that_cannot_work_is_reported_at_the_start(config, server, models, message):
    server.models = models
    with pytest.raises(EngineError) as caught:
        engine.load(config)
    assert message in str(caught.value)


def test_a_missing_server_is_reported_with_what_to_do(config, server):
    server.stop()
    with pytest.raises(EngineError, match=r"no server answers at .*vllm serve .*base_url"):
        engine.load(config)


def test_a_missing_package_is_reported_with_the_command(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EngineError, match=r"pip install .*\[openai\]'"):
        engine.load(config)


@pytest.mark.parametrize("ending", ["", "/"])
def test_the_address_is_used_as_it_is_given(config, server, ending):
    config.descriptions.openai.base_url = server.url + ending
    assert describe(config) == ["the text for a"]


def test_a_request_holds_prompt_image_and_greedy_decoding(config, server):
    pixels = noise(40, 30)
    describe(config, request("What is this?", pixels))
    (payload,) = server.payloads
    image, text = payload["messages"][0].pop("content")
    assert payload == {
        "model": MODEL,
        "messages": [{"role": "user"}],
        "temperature": 0,
        "max_tokens": 77,
    }
    assert text == {"type": "text", "text": "What is this?"}
    assert image["type"] == "image_url"
    assert np.array_equal(decoded(image["image_url"]["url"]), np.asarray(pixels))


def decoded(uri: str) -> np.ndarray:
    """The pixels in a data URI, `[H, W, 3]`."""
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert not image.info
        return np.asarray(image)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_images_of_any_mode_are_sent_in_rgb(mode):
    images = (noise(20, 10, mode),)
    images[0].info = {"icc_profile": b"profile", "transparency": 0}
    assert np.array_equal(decoded(image_uri(images)), np.asarray(single_image(images)))


def test_several_images_are_sent_as_a_collage():
    images = (noise(20, 10), noise(2000, 10), noise(30, 30, "L"))
    assert np.array_equal(decoded(image_uri(images)), np.asarray(single_image(images)))


@pytest.mark.parametrize(
    ("size", "sent"),
    [
        ((1344, 200), (1344, 200)),
        ((2688, 400), (1344, 200)),
        ((300, 3000), (134, 1344)),
        ((9000, 2), (1344, 1)),
    ],
)
def test_large_images_are_scaled_down(size, sent):
    image = noise(*size)
    before = image.copy()
    expected = before if size == sent else before.resize(sent, Image.Resampling.LANCZOS)
    assert np.array_equal(decoded(image_uri((image,))), np.asarray(expected))
    assert image == before


@pytest.mark.parametrize(("key", "header"), [(None, "none"), ("", "none"), (f"{KEY}\n", KEY)])
def test_the_key_comes_from_the_environment(config, server, monkeypatch, key, header):
    monkeypatch.delenv("LATTEC_TEST_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    if key is not None:
        monkeypatch.setenv("LATTEC_TEST_KEY", key)
    describe(config)
    assert server.keys == [f"Bearer {header}"]


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(config, monkeypatch, key):
    monkeypatch.setenv("LATTEC_TEST_KEY", key)
    with pytest.raises(EngineError, match="LATTEC_TEST_KEY") as caught:
        engine.load(config)
    assert key not in str(caught.value)


LONG = "x" * 285  # the key stands where messages are cut


@pytest.mark.parametrize(
    "echo",
    [
        status(400, f"the header was Bearer {KEY}"),
        status(500, f"the header was Bearer {KEY}"),
        status(429, f"the header was Bearer {KEY}", Retry_After="0.01"),
        status(400, f"{LONG}{KEY}"),
        body(f"<html>Bearer {KEY}</html>", "text/html"),
        body(f'{{"error": "Bearer {KEY}"}}'),
        says(None, refusal=f"I was shown {KEY}"),
    ],
)
def test_an_echoed_key_is_blacked_out_of_failures(config, server, monkeypatch, caplog, echo):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("LATTEC_TEST_KEY", KEY)
    server.always = echo
    (failure,) = describe(config)
    assert isinstance(failure, Failure)
    assert "***" in failure.reason or LONG[:250] in failure.reason
    assert "sk-" not in failure.reason
    assert KEY not in caplog.text


@pytest.mark.parametrize("code", [401, 404])
def test_an_echoed_key_is_blacked_out_of_errors(config, server, monkeypatch, code):
    monkeypatch.setenv("LATTEC_TEST_KEY", KEY)
    server.always = server.models = status(code, f"wrong: {KEY}")
    for start in (lambda: describe(config), *([lambda: engine.load(config)] * (code == 401))):
        with pytest.raises(EngineError, match=r"wrong: \*\*\*") as caught:
            start()
        shown = "".join(traceback.format_exception(caught.value))
        assert KEY not in shown


@pytest.mark.parametrize("rest", ["localhost:1", "localhost:x", "[localhost"])
@pytest.mark.parametrize("scheme", ["gopher", "http"])
def test_a_proxy_that_cannot_be_used_is_reported(config, monkeypatch, scheme, rest):
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://user:hunter2/@{rest}")
    with pytest.raises(EngineError, match="proxy") as caught:
        engine.load(config)
    assert "hunter2" not in str(caught.value)


def test_an_image_that_cannot_be_converted_is_a_failure(config):
    class Odd:
        def convert(self, mode):
            raise ValueError("conversion from ODD to RGB not supported")

    answers = describe(config, request("a", Odd()), request("b"))
    assert sorted(answers, key=str)[0] == Failure(
        "ValueError: conversion from ODD to RGB not supported"
    )
    assert "the text for b" in answers


def test_nothing_of_the_key_is_configured(config, monkeypatch):
    monkeypatch.setenv("LATTEC_TEST_KEY", KEY)
    described = engine.OpenAIEngine(engine.identity(config), config.descriptions)
    assert KEY not in config.to_json()
    assert KEY not in repr(described.identity)
    assert KEY not in repr(described)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", 0.0),
        ("inf", float("inf")),
        ("1e308", 1e308),
        ("Fri, 01 Jan 99999 00:00:00 GMT", 0.0),
        (f"Fri, 01 Jan {'9' * 400} 00:00:00 GMT", 0.0),
        ("Fri, 99 Foo", 0.0),
        ("soon", 0.0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 4102444800.0 - 1000.0),
        ("Fri, 01 Jan 1960 00:00:00 GMT", 0.0),
    ],
)
def test_a_pause_is_read_as_number_or_date(monkeypatch, value, seconds):
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert retry_after_seconds(value) == seconds


def test_no_pause_is_none():
    assert retry_after_seconds("") == 0.0


def test_the_module_does_not_hide_the_package():
    import openai

    assert Path(openai.__file__).parent != Path(engine.__file__).parent
    assert hasattr(openai, "AsyncOpenAI")
