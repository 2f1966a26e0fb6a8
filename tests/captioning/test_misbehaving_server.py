"""A description server that misbehaves costs bounded time and memory, and leaves nothing behind.

`python -m tests.captioning.test_misbehaving_server` prints a table of what each behavior did.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import ssl
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from ml_collections import ConfigDict
from PIL import Image

from captioning.engines import openai as engine
from captioning.shards import ShardWriter
from captioning.tasks import Task
from captioning.worker import describe_tasks
from configs import common
from lattec_jax.data.descriptions import records
from lattec_jax.runtime.api_key import KeyFilter
from lattec_jax.runtime.config import validate
from lattec_jax.runtime.errors import EngineError
from lattec_jax.runtime.progress import progress_bar
from tests.captioning.misbehaving_server import (
    CHAT,
    GOOD,
    KEY,
    MODEL,
    MODELS,
    SLOW,
    MisbehavingServer,
)

pytest.importorskip("openai")

LATE, BARRIER_TIMEOUT_S = (
    1.5,
    60.0,
)  # seconds for an answer: of what is slow on purpose, of all others
MAX_DEADLINES = 10  # that one description may take, with everything beside the waiting
MAX_GROWTH = 200  # MB
TEXT, FAILURE, ERROR = "text", "failure", "error"

# What is not a failed description: behavior -> outcome and what is said.
OUTCOMES = {
    "gzip": (TEXT, GOOD),
    "redirect on the same host": (TEXT, GOOD),
    "not UTF-8": (TEXT, "caf\ufffd"),
    "lone surrogates": (TEXT, "a \ufffd square \ufffd"),
    "escape codes": (TEXT, "[2J]0;title a 31m square"),
    "null characters": (TEXT, "asquare"),
    "right to left": (TEXT, "a \u202esquare\u2069 end"),
    "429, endless pause": (ERROR, "asks to wait inf s: 429: slow down"),
    "429, huge pause": (ERROR, r"asks to wait 1e\+308 s: 429: slow down"),
    "429, pause until 2999": (ERROR, r"asks to wait [\d.e+]+ s: 429: slow down"),
    "redirect to another host": (ERROR, r"redirects to http://localhost:\d+/v1/chat/completions, "),
    "redirect to another port": (ERROR, "redirects to http://127.0.0.1:9/v1"),
    "redirect to https": (ERROR, r"redirects to https://127.0.0.1:\d+/v1"),
    "redirect to a file": (ERROR, "redirects to file://127.0.0.1/etc/passwd, "),
    "redirect with a password": (ERROR, "redirects to http://127.0.0.2/, another address"),
    "redirect with the key": (ERROR, r"redirects to http://127.0.0.2/\*\*\*, another address"),
    "models: wrong types": (TEXT, GOOD),
    "models: not a list": (TEXT, GOOD),
    "models: deep JSON": (TEXT, GOOD),
}
# What the failure says, where more is to be seen than that it is one.
SAID = {
    **{name: "contains the API key" for name in CHAT if re.match("(part of the )?key", name)},
    "key after line breaks in an error": r"400: \*\*\*$",
    "endless chunks": "more than 4,194,304 bytes",
    "50 MB of text": "more than 4,194,304 bytes",
    "5,000 characters": "more than 4,000 characters",
    "gzip bomb": "more than 4,194,304 bytes",
    "deflate bomb": "more than 4,194,304 bytes",
    "gzip twice": "content encoding 'gzip, gzip'",
    "brotli that is none": "content encoding 'br'",
    "gzip that is none": "cannot be decompressed",
    "character set bomb": "not JSON",
    "502 with a page of 5 MB": "502: <html><h1>Bad Gateway",
    "redirect in a circle": "redirects more than 5 times",
    "request sent back": "contains the API key",
    "key in an error": r"400: Bearer \*\*\* is wrong",
    "refusal": "the model refuses: I \\[31m must not \ufffd",
    "error with status 200": "GPU \\[2J lost",
    "key in a header": r"400: \{\}$",
    "key in a broken status line": r"illegal status line: .*\*\*\*",
    "models: key in an error": r"503: Bearer \*\*\*\. Wait",
    "models: escape codes": "it has \\[2J name \ufffd",
    **dict.fromkeys(SLOW, "no complete response within 1.5 s"),
}


class Visit(NamedTuple):
    """What one description with one behavior came to."""

    name: str
    outcome: str
    said: str  # the text, the reason, or the message
    seconds: float
    megabytes: float | None  # by which memory grew at most; None: the system does not tell


def expected(name: str) -> tuple[str, str]:
    outcome = ERROR if name in MODELS else FAILURE
    return OUTCOMES.get(name, (outcome, SAID.get(name, ".")))


def deadline(name: str) -> float:
    return LATE if name in SLOW else BARRIER_TIMEOUT_S


def make_config(server: MisbehavingServer, timeout: float) -> ConfigDict:
    config = common.get_config()
    config.descriptions.engine = "openai"
    config.descriptions.openai.update({"base_url": server.url, "model": MODEL, "retries": 0})
    config.descriptions.openai.update({"key_variable": "LATTEC_TEST_KEY", "timeout": timeout})
    config.descriptions.openai.concurrency = 1  # one after the other
    return validate(config)


def visit(server: MisbehavingServer, name: str, directory: Path) -> Visit:
    """Let the server misbehave once, and then answer well.

    What is written lies in `directory`.
    """
    config = make_config(server, deadline(name))
    server.models = name if name in MODELS else ""
    with measured() as cost:
        found = described(config, directory, [name, "next"])
    server.models = ""
    if found[0][0] == ERROR:
        found += described(config, directory, ["next"])
    assert found[1] == (TEXT, GOOD)
    return Visit(name, *found[0], *cost)


def described(config: ConfigDict, directory: Path, prompts: list[str]) -> list[tuple[str, str]]:
    """Outcome and text, reason or message for each prompt; an error is the only one."""
    image = directory / "image.png"
    if not image.exists():
        Image.new("RGB", (4, 4)).save(image)
    shown = [(image, "content")]
    tasks = [Task.make(p, "image", p, engine.identity(config), shown) for p in prompts]
    shard = directory / "shard.jsonl"
    try:
        loaded = (
            engine.load(config)
            if prompts[0] in MODELS
            else engine.OpenAIEngine(engine.identity(config), config.descriptions)
        )
        with ShardWriter(shard) as writer, progress_bar(desc="", unit="image") as progress:
            describe_tasks(loaded, tasks, writer, progress)
    except EngineError as error:
        return [(ERROR, str(error))]
    found = {record.key: record for record in records(shard)}
    return [
        (FAILURE, found[task.key].error) if found[task.key].error else (TEXT, found[task.key].text)
        for task in tasks
    ]


@contextmanager
def measured() -> Iterator[list[float | None]]:
    """Seconds, and megabytes by which this process grew at most, server included."""
    cost: list[float | None] = []
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now
        before = memory("VmRSS")
    except OSError:  # the peak would be that of an earlier test
        before = None
    begin = time.monotonic()
    yield cost
    seconds = time.monotonic() - begin
    cost += [seconds, None if before is None else memory("VmHWM") - before]


def memory(field: str) -> float:
    """Of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1e3


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = MisbehavingServer()
    with pytest.MonkeyPatch.context() as patch:
        # No connection here uses TLS, and reading certificates takes longer than all else.
        patch.setattr(ssl.SSLContext, "load_verify_locations", lambda *args, **named: None)
        patch.setenv("LATTEC_TEST_KEY", KEY)
        warm(running, tmp_path_factory.mktemp("warm"))
        yield running
    running.stop()


def warm(server: MisbehavingServer, directory: Path) -> None:
    """The client imports most of itself at its first request."""
    found = described(make_config(server, BARRIER_TIMEOUT_S), directory, ["a"])
    assert found == [(TEXT, GOOD)]


# Of each kind of misbehavior some; the others run with `full`.
DEFAULT = {
    "garbage",
    "content length too long",
    "closes",
    "resets in the body",
    "never answers",
    "drips chunks",
    "endless chunks",
    "endless error",
    "5,000 characters",
    "gzip",
    "gzip twice",
    "gzip that is none",
    "429",
    "429, endless pause",
    "500",
    "304",
    "deep error",
    "redirect to another host",
    "redirect to a file",
    "redirect with the key",
    "redirect in a circle",
    "redirect on the same host",
    "key",
    "key after white space",
    "key after line breaks in an error",
    "key after null characters",
    "key in lines",
    "key in base64",
    "key in an error",
    "request sent back",
    "half JSON",
    "null choices",
    "content is a list",
    "deep and closed JSON",
    "not UTF-8",
    "lone surrogates",
    "escape codes",
    "refusal",
    "error with status 200",
    "models: closes",
    "models: not a list",
    "models: escape codes",
    "models: key in a name",
    "models: key in an error",
}
assert {*CHAT, *MODELS} >= DEFAULT


@pytest.mark.parametrize(
    "name",
    [
        name if name in DEFAULT else pytest.param(name, marks=pytest.mark.full)
        for name in (*CHAT, *MODELS)
    ],
)
def test_the_server_misbehaves(server, name, tmp_path, caplog):
    before = len(server.requests)
    found = visit(server, name, tmp_path)
    outcome, said = expected(name)
    assert found.outcome == outcome, found
    if outcome == TEXT:
        assert found.said == said
    else:
        assert re.search(said, found.said), found
        assert len(found.said) < 1500
    assert found.seconds < MAX_DEADLINES * deadline(name), found
    for head in server.requests[before:]:  # nothing went to another host
        assert b"host: 127.0.0.1:" in head.lower()
    written = "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))
    assert len(written) < 20_000
    for shown in (found.said, caplog.text, written, *texts(written)):
        assert "hunter2" not in shown
        assert not KeyFilter(KEY).contains_key(shown), shown
        assert base64.b64encode(KEY.encode()).decode() not in shown
    for text in (found.said, *texts(written)):
        text.encode()  # no lone surrogates
        assert not any(unicodedata.category(c) == "Cc" for c in text), repr(text)
    if found.megabytes is None:
        pytest.skip("all but the memory was checked: /proc/self/clear_refs cannot be written")
    assert found.megabytes < MAX_GROWTH, found


def texts(written: str) -> list[str]:
    """All strings in JSON lines."""
    values = [value for line in written.splitlines() for value in json.loads(line).values()]
    return [value for value in values if isinstance(value, str)]


def test_only_gzip_is_asked_for(server, tmp_path):
    before = len(server.requests)
    assert described(make_config(server, BARRIER_TIMEOUT_S), tmp_path, ["a"]) == [(TEXT, GOOD)]
    (head,) = server.requests[before:]
    assert b"accept-encoding: gzip\r\n" in head.lower()


def test_an_allowed_redirect_is_followed_without_the_key(server, tmp_path):
    config = make_config(server, BARRIER_TIMEOUT_S).unlock()
    config.descriptions.openai.allow_redirects = True
    before = len(server.requests)
    # It leads to the same server, which redirects again.
    found = described(config, tmp_path, ["redirect to another host"])
    assert found[0][1].endswith("redirects more than 5 times")
    elsewhere = [r for r in server.requests[before:] if b"host: localhost:" in r.lower()]
    assert elsewhere and not any(KEY.encode() in request for request in elsewhere)


def main() -> None:
    logging.disable()
    os.environ["LATTEC_TEST_KEY"] = KEY
    server = MisbehavingServer()
    print(f"{'behavior':36}{'outcome':9}{'seconds':>8}{'MB':>6}  said")
    with tempfile.TemporaryDirectory() as directory:
        warm(server, Path(directory))
        for number, name in enumerate([*CHAT, *MODELS]):
            folder = Path(directory) / str(number)
            folder.mkdir()
            found = visit(server, name, folder)
            said = found.said if len(found.said) < 90 else found.said[:89] + "…"
            grown = "-" if found.megabytes is None else round(found.megabytes)
            print(f"{name:36}{found.outcome:9}{found.seconds:8.2f}{grown:>6}  {said}")
    server.stop()


if __name__ == "__main__":
    main()
