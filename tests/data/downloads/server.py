"""A web server on this machine, which resumes, drops connections and refuses as public ones do."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> content) and notes the requests.

    `drop_after` lists after how many bytes each of the next answers is cut off. `status` is an
    error for all. `ranges` False ignores the header `Range`, as some servers do. `most` bounds the
    bytes of an answer to a range. `headers` replaces headers (None: leaves one out), and `redirect`
    is where all requests are sent.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.drop_after: list[int] = []
        self.status = 0
        self.ranges = True
        self.most = 0
        self.headers: dict[str, str | None] = {}
        self.redirect = ""
        self.requests: list[tuple[str, str]] = []  # path, its header Range
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.requests.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if self.server.redirect:
            self.send_response(302)
            self.send_header("Location", self.server.redirect)
            self.end_headers()
            return
        if self.server.status or content is None:
            self.send_error(self.server.status or 404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        start = start if self.server.ranges else 0
        if wanted and self.server.ranges and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        end = len(content)
        if start and self.server.most:
            end = min(end, start + self.server.most)
        headers: dict[str, str | None] = {"Content-Length": str(end - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self.send_response(206 if start else 200)
        for name, value in (headers | self.server.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.server.drop_after:
            end = min(end, start + self.server.drop_after.pop(0))
        with contextlib.suppress(OSError):  # the client was killed
            self.wfile.write(content[start:end])
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Write nothing to the output of the tests."""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Start a server for the time of the block."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
