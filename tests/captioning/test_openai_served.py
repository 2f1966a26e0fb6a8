"""The engine against a real server: `transformers serve` with a LLaVA-NeXT of random weights."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.engines import Request, clean_result, engine_module
from configs import common
from lattec_jax.runtime.config import validate
from lattec_jax.runtime.errors import EngineError
from tests import tiny_llava
from tests.data.hub_tokenizers import transformers

for _package in ("openai", "torch", "fastapi", "uvicorn", "accelerate"):
    pytest.importorskip(_package)

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "describe the land use"
TOKENS = 12
# Without torchvision, which beside a CPU build of PyTorch has no decoder of its own, the server
# reads images with Pillow.
SERVE = """
import sys
sys.modules["torchvision"] = None
from transformers.cli.transformers import app
app()
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("served") / "tiny-llava"
    tiny_llava.save(directory)
    return directory


@pytest.fixture(scope="module")
def url(checkpoint):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", str(checkpoint), "--device=cpu"]
    command += ["--host=127.0.0.1", f"--port={port}"]
    log = checkpoint.parent / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        end = time.monotonic() + 120
        while not is_up(url):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def config(checkpoint, url):
    config = common.get_config()
    config.descriptions.engine = "openai"
    config.descriptions.max_new_tokens = TOKENS
    config.descriptions.openai.update({"base_url": url, "model": str(checkpoint)})
    config.descriptions.openai.update({"concurrency": 2, "retries": 0})
    return validate(config)


def images() -> list[Image.Image]:
    """Wide, high, large and gray."""
    rng = np.random.default_rng(0)
    found = []
    for width, height in ((60, 40), (30, 90), (200, 200), (50, 50)):
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        found.append(Image.fromarray(coarse).resize((width, height)))
    return [*found[:3], found[3].convert("L")]


def generated(checkpoint: Path, wanted: list[Image.Image]) -> list[str]:
    """Return the greedy texts of transformers itself."""
    module = transformers()
    model = module.AutoModelForImageTextToText.from_pretrained(checkpoint)
    processor = module.AutoProcessor.from_pretrained(checkpoint, backend="pil")
    texts = []
    for image in wanted:
        content = [{"type": "image", "image": image.convert("RGB")}]
        content += [{"type": "text", "text": PROMPT}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        tokens = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.decode(answer, skip_special_tokens=True))
    return texts


def test_texts_equal_those_of_the_model(checkpoint, config):
    engine = engine_module(config).load(config)
    requests = [
        Request(str(number), "image", PROMPT, (image,)) for number, image in enumerate(images())
    ]
    answers = {request.image_id: text for request, text in engine.describe(requests)}
    expected = list(map(clean_result, generated(checkpoint, images())))  # as it may be written
    assert len(set(expected)) == 4  # else equality would mean little
    assert [answers[str(number)] for number in range(4)] == expected


def test_the_server_lists_its_models(config, checkpoint):
    config.descriptions.openai.model = f"{checkpoint}-7b"
    with pytest.raises(EngineError, match=r"it has .*tiny-llava\. Did you mean"):
        engine_module(config).load(config)


def test_an_address_without_v1_is_reported(config, url):
    config.descriptions.openai.base_url = url.removesuffix("/v1")
    engine = engine_module(config).load(config)
    request = Request("0", "image", PROMPT, (images()[0],))
    with pytest.raises(EngineError, match=r"404: Not Found.*usually ends with /v1"):
        list(engine.describe([request]))
