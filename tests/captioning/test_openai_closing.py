"""The engine openai, closed or interrupted while requests are in flight."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioning.engines import Request
from lattec_jax.runtime.errors import DataError
from tests.captioning.chat_server import (
    after,
    says,
    status,
)
from tests.captioning.test_openai_faults import make_engine, numbered

pytest.importorskip("openai")


ROOT = Path(__file__).resolve().parents[2]


def no_threads_but(before: set[threading.Thread]) -> bool:
    """Whether the engine's threads end; those of the server in this process do not count."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        left = {t for t in set(threading.enumerate()) - before if "process_request" not in t.name}
        if not left:
            return True
        time.sleep(0.02)
    return False


def test_closing_early_cancels_what_is_under_way(server):
    engine = make_engine(server, timeout=600.0)
    server.script = {"0": [says("first")]}
    server.always = after(600, says("late"))
    before = set(threading.enumerate())
    found = engine.describe(numbered(50))
    assert next(found)[1] == "first"
    begin = time.monotonic()
    found.close()
    assert time.monotonic() - begin < 250  # the server would take 300 or 600 seconds
    assert no_threads_but(before)
    assert server.attempts.total() <= 4


def test_closing_early_ends_pauses_and_backoff(server):
    server.script = {"0": [says("first")]}
    server.always = status(429, "slow down", Retry_After="300")
    found = make_engine(server).describe(numbered(50))
    assert next(found)[1] == "first"
    begin = time.monotonic()
    found.close()
    assert time.monotonic() - begin < 250  # the server would take 300 or 600 seconds


def test_an_error_in_the_requests_comes_through(server):
    before = set(threading.enumerate())

    def pull() -> Iterator[Request]:
        yield from numbered(2)
        raise DataError("no image can be read")

    with pytest.raises(DataError, match="no image can be read"):
        list(make_engine(server).describe(pull()))
    assert no_threads_but(before)


INTERRUPTED = """
import sys, time
sys.path.insert(0, ".")
from tests.captioning.test_openai_faults import make_engine, numbered
class Server:
    url = sys.argv[1]
found = make_engine(Server, timeout=600.0).describe(numbered(50))
next(found)
print("first", flush=True)
if sys.argv[2] == "waiting":
    next(found)
time.sleep(600)
"""


@pytest.mark.parametrize("state", ["waiting", "elsewhere"])
def test_control_c_ends_the_process_at_once(server, state):
    server.script = {"0": [says("first")]}
    server.always = after(600, says("late"))
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, server.url, state],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"first\n"
        end = time.monotonic() + 60
        while server.attempts.total() < (5 if state == "waiting" else 4):
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert b"KeyboardInterrupt" in errors
    assert process.returncode != 0
