"""Fixtures shared by the captioning tests."""

import pytest

from captioning.engines import ENGINES
from tests import tiny_llava
from tests.captioning.chat_server import ChatServer
from tests.captioning.ruler import make_config


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Ten images and the engine `ruler`."""
    monkeypatch.setitem(ENGINES, "ruler", "tests.captioning.ruler")
    return make_config(tmp_path)


@pytest.fixture
def server():
    """A scripted server with the OpenAI chat API."""
    server = ChatServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def llava_checkpoint(tmp_path_factory):
    """The directory of a tiny LLaVA-NeXT checkpoint."""
    tiny_llava.transformers()
    return tiny_llava.save(tmp_path_factory.mktemp("llava") / "tiny")
