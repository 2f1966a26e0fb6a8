"""A scripted server with the OpenAI chat API that records its requests."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "org/tiny-vision"


class Handler(BaseHTTPRequestHandler):
    """Answers according to the server's script."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    server: ChatServer

    def do_GET(self) -> None:
        self.server.models(self)

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = payload["messages"][0]["content"][-1]["text"]
        reply = self.server.take(name, payload, self)
        with self.server.counted():
            reply(self)

    def send(self, status: int, body: str, kind: str = "application/json", **headers: str) -> None:
        """A complete answer; of a header's name the underscores become dashes."""
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


Reply = Callable[[Handler], None]


class ChatServer(ThreadingHTTPServer):
    """Answers each prompt with its replies in `script`, in order, and then with `text_for`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: dict[str, Sequence[Reply]] = {}
        self.always: Reply | None = None  # in the place of the text, after the script
        self.models: Reply = listing(MODEL)
        self.attempts: Counter[str] = Counter()
        self.payloads: list[dict[str, Any]] = []
        self.keys: list[str | None] = []  # the headers "Authorization"
        self.times: list[float] = []  # monotonic, of each request's arrival
        self.at_once = 0
        self.most_at_once = 0
        self.closing = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def take(self, name: str, payload: dict[str, Any], handler: Handler) -> Reply:
        with self._lock:
            number = self.attempts[name]
            self.attempts[name] += 1
            self.payloads.append(payload)
            self.keys.append(handler.headers["Authorization"])
            self.times.append(time.monotonic())
        replies = self.script.get(name, ())
        if number < len(replies):
            return replies[number]
        return self.always or says(text_for(name))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request that is being answered."""
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self._lock:
                self.at_once -= 1

    def stop(self) -> None:
        """Refuse connections from now on."""
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is what some tests are about."""


def text_for(name: str) -> str:
    """Return the server's regular text for the prompt `name`."""
    return f"the text for {name}"


def answer(text: str | None, reason: str = "stop", **message: Any) -> str:
    """Return the body of a response."""
    message = {"role": "assistant", "content": text, **message}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": reason}]})


def says(text: str | None, reason: str = "stop", **message: Any) -> Reply:
    return lambda handler: handler.send(200, answer(text, reason, **message))


def body(text: str, kind: str = "application/json") -> Reply:
    return lambda handler: handler.send(200, text, kind)


def status(code: int, message: str = "", **headers: str) -> Reply:
    error = json.dumps({"error": {"message": message, "code": code}})
    return lambda handler: handler.send(code, error, **headers)


def listing(*names: str) -> Reply:
    """Return the list of models."""
    return body(json.dumps({"object": "list", "data": [{"id": name} for name in names]}))


def after(seconds: float, reply: Reply) -> Reply:
    """Reply after a delay."""

    def late(handler: Handler) -> None:
        handler.server.closing.wait(seconds)
        reply(handler)

    return late


def dripping(handler: Handler) -> None:
    """Send white space forever, as some services do to prevent timeouts."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.closing.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def dropped(handler: Handler) -> None:
    """Close the connection without a response."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut_off(handler: Handler) -> None:
    """Send half a response."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(answer("half")[:40].encode())
    handler.wfile.flush()
    dropped(handler)
