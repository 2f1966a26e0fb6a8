"""The engine behind an OpenAI server that is slow, busy, broken or gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from captioning.engines import Failure, Request
from captioning.engines.openai import OpenAIEngine, identity
from captioning.engines.openai.session import log
from configs import common
from lattec_jax.runtime.config import validate
from lattec_jax.runtime.errors import EngineError
from tests.captioning.chat_server import (
    MODEL,
    ChatServer,
    Handler,
    after,
    body,
    cut_off,
    dripping,
    dropped,
    listing,
    says,
    status,
    text_for,
)

pytest.importorskip("openai")

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 3.0  # seconds; what answers does so in milliseconds
HTML = "<html>\n<h1>Bad\nGateway</h1></html>"

# What is worth another attempt -> what is said of it where none succeeds.
TRANSIENT = {
    "silent": (after(600, says("late")), "no complete response within 3 s"),
    "dripping": (dripping, "no complete response within 3 s"),
    "busy": (status(429, "slow down"), "concurrency may help: 429: slow down"),
    "pause": (status(429, "slow down", Retry_After="0.05"), "429: slow down"),
    "broken": (status(500, "out of memory"), "500: out of memory"),
    "overloaded": (lambda h: h.send(503, "", Retry_After="0.05"), "503:"),
    "gateway": (lambda h: h.send(502, HTML, "text/html"), "502: <html> <h1>Bad Gateway</h1>"),
    "dropped": (dropped, "the connection failed: Server disconnected"),
    "cut off": (cut_off, "the connection failed: peer closed connection"),
    "malformed": (body('{"choices": ['), 'the response is not JSON: {"choices": ['),
    "empty": (body(""), "the response is not JSON: it is empty"),
    "page": (body(HTML, "text/html"), "the response is not JSON: <html> <h1>Bad Gateway"),
    "list": (body("[]"), "the response contains no text: []"),
    "no choices": (body('{"id": 1}'), 'the response contains no text: {"id": 1}'),
    "null choices": (body('{"choices": null}'), 'the response contains no text: {"choices": null}'),
    "error": (
        body('{"error": {"message": "GPU lost"}}'),
        "the response contains no text: GPU lost",
    ),
    "null": (says(None), "the response contains no text: "),
    "parts": (says([{"type": "text", "text": "a"}]), "the response contains no text: "),
}
REFUSED = {
    "image": (status(400, "no such image"), "400: no such image"),
    "large": (status(413, "too large"), "413: too large"),
    "detail": (lambda h: h.send(422, '{"detail": "max_tokens"}'), "422: max_tokens"),
    "bare": (lambda h: h.send(400, "", "text/plain"), "400:"),
    "filter": (says(None, "content_filter"), "the server's content filter withheld the text"),
    "half": (says("a dog and", "content_filter"), "the server's content filter withheld"),
    "declined": (says(None, refusal="I must\nnot"), "the model refuses: I must not"),
    "thinking": (says(None, "length"), "no text within config.descriptions.max_new_tokens"),
    "thinking still": (says("", "length"), "no text within config.descriptions.max_new_tokens"),
}


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """The client imports most of itself at its first request, which takes a while."""
    server = ChatServer()
    assert answers(make_engine(server, timeout=600.0), requests("a")) == {"a": text_for("a")}
    server.stop()


@pytest.fixture
def engine(server) -> OpenAIEngine:
    return make_engine(server)


def make_engine(server: ChatServer, concurrency: int = 4, retries: int = 1, timeout: float = 30.0):
    config = common.get_config()
    config.descriptions.openai.update(
        {"base_url": server.url, "model": MODEL, "key_variable": "LATTEC_TEST_KEY"}
    )
    config.descriptions.openai.update(
        {"concurrency": concurrency, "retries": retries, "timeout": timeout}
    )
    config = validate(config)
    return OpenAIEngine(identity(config), config.descriptions, backoff=0.01)


def requests(*names: str) -> list[Request]:
    return [Request(name, "image", name, (Image.new("RGB", (4, 4)),)) for name in names]


def numbered(count: int) -> list[Request]:
    return requests(*(str(number) for number in range(count)))


def answers(engine: OpenAIEngine, wanted: list[Request]) -> dict[str, str | Failure]:
    found = [(request.image_id, text) for request, text in engine.describe(wanted)]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_passes_is_tried_again(server, fault):
    engine = make_engine(server, timeout=TIMEOUT if "within" in TRANSIENT[fault][1] else 30.0)
    server.script = {"b": [TRANSIENT[fault][0]]}
    assert answers(engine, requests("a", "b", "c")) == {n: text_for(n) for n in "abc"}
    assert server.attempts == {"a": 1, "b": 2, "c": 1}


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=[pytest.mark.full] * (f == "dripping")) for f in TRANSIENT]
)
def test_what_does_not_pass_is_a_failure_of_its_request_alone(server, fault):
    reply, said = TRANSIENT[fault]
    engine = make_engine(server, timeout=TIMEOUT if "within" in said else 30.0)
    server.script = {"b": [reply] * 9}
    found = answers(engine, requests("a", "b", "c"))
    failure = found.pop("b")
    assert found == {n: text_for(n) for n in "ac"}
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("after 2 attempts: ")
    assert said in failure.reason
    assert "\n" not in failure.reason
    assert len(failure.reason) <= 300
    assert server.attempts == {"a": 1, "b": 2, "c": 1}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_would_be_refused_again_is_not_repeated(server, engine, fault):
    reply, said = REFUSED[fault]
    server.script = {"b": [reply] * 9}
    found = answers(engine, requests("a", "b", "c"))
    assert found["b"].reason.startswith(f"after 1 attempt: {said}")
    assert "\n" not in found["b"].reason
    assert found["a"] == text_for("a")
    assert found["c"] == text_for("c")
    assert server.attempts["b"] == 1


def test_texts_may_be_empty_or_cut(server, engine):
    server.script = {"a": [says("")], "b": [says("a dog on a", "length")]}
    assert answers(engine, requests("a", "b")) == {"a": "", "b": "a dog on a"}


@pytest.mark.parametrize(
    ("reply", "models", "message"),
    [
        (status(401, "who?"), listing(MODEL), r"401: who\?.*LATTEC_TEST_KEY.*is not set"),
        (status(403, "no"), listing(MODEL), r"refuses access: 403: no"),
        (status(404, "none"), listing("org/tiny"), r"has no model 'org/tiny-vision'; it has org/"),
        (status(404, "none"), listing(MODEL), r"nothing at http.*completions: 404: none.*/v1"),
        (status(404, "none"), status(404), r"nothing at http.*completions: 404: none.*/v1"),
        (status(405, "GET"), listing(MODEL), r"nothing at http.*completions: 405: GET.*/v1"),
        (status(429, "quota", Retry_After="7200"), listing(MODEL), r"wait 7200 s: 429: quota"),
    ],
)
def test_what_fails_for_all_ends_the_run(server, engine, reply, models, message):
    server.always, server.models = reply, models
    with pytest.raises(EngineError, match=message):
        answers(engine, numbered(100))
    assert server.attempts.total() <= 4


@pytest.mark.parametrize("gone", [True, False])
def test_a_lost_server_ends_the_run(server, gone):
    engine = make_engine(server, concurrency=1)
    found = {}
    with pytest.raises(EngineError, match=r"did not answer the last 20 requests.*continues"):
        for number, (request, text) in enumerate(engine.describe(numbered(200))):
            found[request.image_id] = text
            if number == 30 and gone:
                # The open connection outlives the listener.
                server.always = dropped
                server.stop()
            elif number == 30:
                server.always = status(500, "out of memory")
    assert list(found) == [str(number) for number in range(31 + 19)]
    assert found["30"] == text_for("30")
    assert found["49"].reason.startswith("after 2 attempts: ")


def test_refused_images_do_not_end_the_run(server, engine):
    server.always = status(400, "no such image")
    assert len(answers(engine, numbered(60))) == 60


@pytest.mark.parametrize("other", [says("text"), status(400, "no such image")])
def test_a_server_that_answers_now_and_then_is_not_lost(server, other):
    engine = make_engine(server, concurrency=1, retries=0)
    server.script = {str(number): [status(500)] for number in range(0, 60, 2)}
    server.always = other
    assert len(answers(engine, numbered(60))) == 60


def test_a_pause_holds_for_all(server, monkeypatch):
    engine = make_engine(server, concurrency=2)
    noted, refused = threading.Event(), []
    monkeypatch.setattr(log, "warning", lambda *_: noted.set())

    def refuse(handler: Handler) -> None:
        refused.append(time.monotonic())
        status(429, "slow down", Retry_After="0.6")(handler)

    def once_noted(handler: Handler) -> None:
        noted.wait(60)
        says("text")(handler)

    server.script, server.always = {"0": [refuse]}, once_noted
    assert set(answers(engine, numbered(8)).values()) == {"text"}
    early = [at for at in server.times if at < refused[0] + 0.6]
    assert len(server.times) == 9
    assert len(early) <= 2  # the two that were sent at first


def test_the_window_is_full_and_not_overfull(server):
    engine = make_engine(server, concurrency=3)

    def once_full(handler: Handler) -> None:
        end = time.monotonic() + 60
        while server.most_at_once < 3 and time.monotonic() < end:
            time.sleep(0.01)
        after(0.05, says("text"))(handler)

    server.always = once_full
    pulled = answered = 0

    def pull() -> Iterator[Request]:
        nonlocal pulled
        for request in numbered(20):
            pulled += 1
            assert pulled - answered <= 4
            yield request

    for _ in engine.describe(pull()):
        answered += 1
    assert answered == 20
    assert server.most_at_once == 3


def test_answers_come_as_soon_as_they_are_there(server):
    engine = make_engine(server, concurrency=2)
    others = threading.Event()

    def last(handler: Handler) -> None:
        others.wait(60)
        says("slow")(handler)

    server.script = {"0": [last]}
    order = []
    for request, _ in engine.describe(numbered(6)):
        order.append(request.image_id)
        if len(order) == 5:
            others.set()
    assert order == ["1", "2", "3", "4", "5", "0"]


def test_an_engine_describes_one_kind_after_another(server, engine):
    assert answers(engine, numbered(3)) == answers(engine, numbered(3))


def test_no_requests_are_no_answers(server, engine):
    assert answers(engine, []) == {}
