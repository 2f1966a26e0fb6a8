"""Fixtures shared by the captioning tests."""

import pytest

from captioning.engines import ENGINES
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
