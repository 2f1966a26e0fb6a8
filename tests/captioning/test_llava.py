"""The real LlavaNext classes and bitsandbytes layers, tiny and randomly initialized, on the CPU."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from captioning.collage import collage
from captioning.engines import Failure, Request, llava
from lattec_jax.runtime.errors import EngineError
from tests import tiny_llava

PROMPT = "Describe the object in the photo concisely, using less than 20 words."
SIZES = [(60, 60), (1000, 30), (20, 700), (1, 1), (130, 70), (64, 64), (3, 90), (200, 201)]


@pytest.fixture
def config(llava_checkpoint):
    return tiny_llava.make_config(llava_checkpoint)


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng([width, height, seed])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))


def request(number: int, *images: Image.Image) -> Request:
    return Request(str(number), "image", PROMPT, images)


def said(engine, requests) -> dict[str, str | Failure]:
    return {requested.image_id: text for requested, text in engine.describe(iter(requests))}


def test_batches_say_what_single_images_say(config):
    requests = [request(n, image(*size)) for n, size in enumerate(SIZES)]
    config.descriptions.llava.batch_size = 8
    all_at_once = said(llava.load(config), requests)
    config.descriptions.llava.batch_size = 1
    assert said(llava.load(config), requests) == all_at_once
    assert all(isinstance(text, str) for text in all_at_once.values())
    assert len(set(all_at_once.values())) >= 6  # otherwise the images would not count


@pytest.mark.parametrize("precision", ["nf4", "int8", "bfloat16"])
def test_every_precision_describes(config, precision):
    config.descriptions.llava.precision = precision
    config.descriptions.llava.batch_size = 2
    found = said(llava.load(config), [request(n, image(60, 60, n)) for n in range(3)])
    assert len(found) == 3 and all(isinstance(text, str) for text in found.values())


def test_the_prompt_is_the_chat_template_and_nothing_is_cut_off(config):
    engine = llava.load(config)
    words = "what is it? " * 300
    requested = Request("long", "image", words.strip(), (image(60, 60),))
    inputs = engine._inputs([requested])
    ids = inputs["input_ids"][0].tolist()
    tokenizer = engine._processor.tokenizer
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    once = [t for t, before in zip(ids, [None, *ids], strict=False) if t != image_id or before != t]
    text = tokenizer.decode(once, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert text == f"<s>[INST] <image>\n{words.strip()} [/INST]"


@pytest.mark.parametrize("size", [(3000, 30), (30, 3000), (1, 1), (336, 1), (2, 500), (97, 101)])
def test_image_tokens_are_as_many_as_image_features(config, size):
    import torch

    engine = llava.load(config)
    requested = request(0, image(*size))
    inputs = engine._inputs([requested])
    tokens = int((inputs["input_ids"] == engine._model.config.image_token_id).sum())
    with torch.inference_mode():
        features = engine._model.model.get_image_features(
            pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"]
        )
    features = getattr(features, "pooler_output", features)
    assert tokens == sum(len(part) for part in features)


def test_groups_are_shown_as_collages(config):
    engine = llava.load(config)
    members = [image(40, 30, n) for n in range(4)]
    (group,) = said(engine, [request(0, *members)]).values()
    (shown,) = said(engine, [request(0, collage(members))]).values()
    assert group == shown


def test_memory_that_runs_out_halves_the_batch(config):
    import torch

    config.descriptions.llava.batch_size = 8
    engine = llava.load(config)
    requests = [request(n, image(60, 60, n)) for n in range(20)]
    expected = said(engine, requests)
    generate, sizes = engine._model.generate, []

    def scarce(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return generate(**inputs)

    engine._model.generate = scarce
    assert said(engine, requests) == expected
    assert engine.batch_size == 2
    assert sizes == [8, 4, *[2] * 10]  # batches that were already prepared are not tried whole

    def none(**inputs):
        raise torch.OutOfMemoryError("out of memory")

    engine._model.generate = none
    found = said(engine, requests[:2])
    assert all("too little memory" in failure.reason for failure in found.values())


def test_one_that_fails_leaves_the_others(config):
    config.descriptions.llava.batch_size = 4
    engine = llava.load(config)
    requests = [request(n, image(60, 60, n)) for n in range(4)]
    long = Request("long", "image", "x " * 5000, (image(60, 60),))
    closed = Image.new("RGB", (8, 8))
    closed.close()
    two = Request("two", "image", "What is <image>?", (image(60, 60),))
    bad = [long, request("closed", closed), two]
    found = said(engine, [*requests[:2], *bad, *requests[2:]])
    assert "more than the model's maximum of 4096" in found.pop("long").reason
    assert "closed image" in found.pop("closed").reason
    assert "2 <image> tokens" in found.pop("two").reason
    assert found == said(engine, requests)

    def broken(**inputs):
        raise RuntimeError("CUDA error: device-side assert triggered")

    engine._model.generate = broken
    with pytest.raises(EngineError, match="the GPU failed"):
        said(engine, requests)


def test_identities(config, llava_checkpoint):
    found = llava.identity(config)
    assert re.fullmatch(r"tiny@[0-9a-f]{12}", found.model)
    assert found.decoding == "float32, greedy, at most 12 new tokens"
    file = llava_checkpoint / "generation_config.json"
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    assert llava.identity(config).model != found.model
    file.write_bytes(content)
    config.descriptions.llava.model = "llava-hf/llava-v1.6-mistral-7b-hf"
    assert llava.identity(config).model == "llava-hf/llava-v1.6-mistral-7b-hf"
    config.descriptions.llava.revision = "abc"
    assert llava.identity(config).model == "llava-hf/llava-v1.6-mistral-7b-hf@abc"


def test_identity_of_a_directory_that_is_not_there(config, tmp_path):
    config.descriptions.llava.model = str(tmp_path / "none")
    with pytest.raises(EngineError, match="there is no directory"):
        llava.identity(config)


def test_processes(config, monkeypatch):
    tiny_llava.transformers()
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert llava.processes(config) == 4
    config.descriptions.llava.device = "cpu"
    assert llava.processes(config) == 1


def test_nothing_but_the_end_is_taken_from_the_checkpoints_generation(config, tmp_path):
    requests = [request(n, image(60, 60, n)) for n in range(3)]
    expected = said(llava.load(config), requests)
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "num_beams": 3}
    settings |= {"min_new_tokens": 11, "eos_token_id": [2, 511]}
    tiny_llava.use_changed_copy(
        config, tmp_path, "generation_config.json", lambda p: p.write_text(json.dumps(settings))
    )
    engine = llava.load(config)
    assert engine._model.generation_config.eos_token_id == [2, 511]
    assert said(engine, requests) == expected


def test_a_template_that_writes_the_beginning_itself(config, tmp_path):
    tiny_llava.use_changed_copy(
        config,
        tmp_path,
        "chat_template.jinja",
        lambda path: path.write_text("{{ bos_token }}" + path.read_text()),
    )
    engine = llava.load(config)
    ids = engine._inputs([request(0, image(60, 60))])["input_ids"][0].tolist()
    assert ids.count(1) == 1 and ids[0] == 1
