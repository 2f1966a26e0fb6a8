"""Servers and functions that describe for `adapt`, and the processes that it starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lattec_jax import adaptation
from lattec_jax.adaptation import adapt, describing
from lattec_jax.runtime.config import to_json
from lattec_jax.runtime.errors import ConfigError, EngineError
from tests.captioning.chat_server import MODEL, ChatServer
from tests.test_adapt_choices import configured


@pytest.fixture
def server() -> Iterator[ChatServer]:
    server = ChatServer()
    yield server
    server.stop()


def test_the_only_model_of_a_server_is_taken(server, monkeypatch):
    key = "sk-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert describing.served_model(server.url, "OPENAI_API_KEY") == MODEL

    def models(handler) -> None:
        names = [{"id": "one"}, {"id": f"two {handler.headers['Authorization']}"}]
        handler.send(200, json.dumps({"data": names}))

    server.models = models
    with pytest.raises(ConfigError, match=r"has 2 models \(one, two Bearer \*\*\*\); name the"):
        describing.served_model(server.url, "OPENAI_API_KEY")

    def long_list(handler) -> None:  # it is truncated in the middle of the key
        names = [{"id": "x" * 208}, {"id": key}, {"id": "y" * 200}]
        handler.send(200, json.dumps({"data": names}))

    server.models = long_list
    with pytest.raises(ConfigError) as error:
        describing.served_model(server.url, "OPENAI_API_KEY")
    assert "sk-012" not in str(error.value)
    server.models = lambda h: h.send(200, json.dumps({"data": [{"id": f"of {key}"}]}))
    with pytest.raises(EngineError, match="contains the API key") as error:
        describing.served_model(server.url, "OPENAI_API_KEY")
    assert key not in str(error.value)
    for status, body in ((404, "{}"), (200, "[1]"), (200, "<html>"), (302, "")):
        server.models = lambda h, s=status, b=body: h.send(s, b, Location=server.url)
        with pytest.raises(EngineError, match="does not list its models"):
            describing.served_model(server.url, "OPENAI_API_KEY")


@pytest.mark.parametrize("key", ["sk-secret\nX: y", "sk-sécret"])
def test_a_key_that_cannot_be_sent_is_refused(server, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(EngineError, match=r"OPENAI_API_KEY .*expected printable ASCII") as error:
        describing.served_model(server.url, "OPENAI_API_KEY")
    assert "sk-" not in str(error.value)


def test_no_server_is_asked_for_what_is_known():
    Path("photos").mkdir()
    address = "--config.descriptions.openai.base_url=http://localhost:9/v1"
    describer = describing.make_describer("http://localhost:9", "")
    zero_shot = configured(address, options="method=zero_shot")
    assert adaptation._model(zero_shot, describer) == []
    config = configured(address, "--config.descriptions.openai.model=m")
    Path("config.json").write_text(to_json(config), encoding="utf-8")
    recorded = adaptation._recorded(Path(), {"method.alpha": 0.5}, False)
    assert recorded["descriptions.openai.model"] == "m"
    assert "train.batch_size" in recorded and "method.alpha" not in recorded
    assert adaptation._model(config, describer) == []
    config.dataset.test = "/photos/test"
    Path("config.json").write_text(to_json(config), encoding="utf-8")
    adaptation._recorded(Path(), {}, True)
    with pytest.raises(ConfigError, match=r"repeat --test=/photos/test .*to continue it"):
        adaptation._recorded(Path(), {}, False)
    with pytest.raises(EngineError, match="does not list its models"):
        adaptation._model(configured(address), describer)


def test_the_identity_of_a_function_is_part_of_the_engine():
    def function(images):
        return images

    names = []
    for identity in ("one", "two", "one"):
        function.identity = identity
        names.append(describing.make_describer(function, "").engine)
    assert names[0] == "function-function-7692c3ad" == names[2] != names[1]


def test_a_missing_package_is_named_before_the_pseudo_labels(monkeypatch):
    monkeypatch.setattr(describing, "find_spec", lambda name: None)
    monkeypatch.setattr(describing, "_run", lambda *arguments: pytest.fail("it started"))
    for engine, extra in (("openai", "openai"), ("llava", "captioning")):
        config = configured(f"--config.descriptions.engine={engine}")
        with pytest.raises(EngineError, match=rf"by {engine} need .*\[{extra}\]"):
            describing.describe(config, describing.make_describer(engine, ""), (), False)


def test_an_address_stands_for_its_server():
    found = describing.make_describer("http://localhost:8000", "bird")
    assert found.settings["descriptions.openai.base_url"] == "http://localhost:8000/v1"
    assert found.engine == "openai"
    assert found.settings["descriptions.prompts.image"] == (
        "Describe the bird in the photo concisely, using less than 20 words."
    )
    other = describing.make_describer("https://host/api/v2/", "")
    assert other.settings["descriptions.openai.base_url"] == "https://host/api/v2"
    with pytest.raises(ConfigError, match="found a lambda; write it with def, or set"):
        describing.make_describer(lambda images: [], "")


def test_hidden_progress_prints_warnings_only(monkeypatch, capfd, caplog):
    Path("photos").mkdir()
    for name in ("a.png", "b.heic"):
        Image.new("RGB", (9, 8)).save(Path("photos", name), "PNG")
    monkeypatch.setattr(adaptation, "_train", lambda *arguments: child("hidden"))
    with pytest.raises(EngineError, match="status 3"):
        adapt("photos", ["cat", "dog"], progress=False)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "files of other formats are not used: 1 (1 .heic)" in caplog.text
    assert shown.err == "warning of the child\n"


def child(case: str) -> None:
    """Run a module in a child process that prints on both streams, and ends with status 3."""
    Path("noisy.py").write_text(
        "import os, sys\n"
        "def run(argv):\n"
        "    print('next: ...')\n"
        "    os.write(1, b'of a library\\n')\n"
        "    print('warning of the child', file=sys.stderr)\n"
        "    sys.exit(3)\n"
    )
    describing._run("noisy", [], progress=case == "shown")


def test_the_output_of_a_child_goes_to_both_streams(capsys):
    with pytest.raises(EngineError, match="status 3"):
        child("shown")
    shown = capsys.readouterr()
    assert sorted(shown.out.splitlines()) == ["next: ...", "of a library"]
    assert shown.err == "warning of the child\n"
