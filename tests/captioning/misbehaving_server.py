"""A server on localhost that breaks the rules of HTTP and of the OpenAI chat API in many ways.

It writes bytes to a socket, so that nothing corrects them. `CHAT` and `MODELS` hold its behaviors
by name: a description is asked for by the prompt of that name, and every other prompt gets a good
answer. A behavior gets the connection after the request has been read; the connection is closed
when it returns.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import json
import socket
import struct
import threading
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

MODEL = "org/tiny-vision"
KEY = "sk-proj-Zq83hVb2LmX0yTrW5nKc"
GOOD = "a red square on white ground"


class Connection:
    """What a behavior may do."""

    def __init__(self, server: MisbehavingServer, writer: asyncio.StreamWriter) -> None:
        self.server, self._writer = server, writer

    async def raw(self, *parts: bytes) -> None:
        """Send bytes as they are."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()

    async def drip(self, part: bytes, seconds: float = 0.05) -> None:
        """Send the same bytes for ever."""
        while True:
            await self.raw(part)
            await asyncio.sleep(seconds)

    async def flood(self, part: bytes) -> None:
        """Send the same bytes for ever, as fast as they are taken."""
        while True:
            await self.raw(part)

    async def reply(self, body: bytes | str, *headers: str, status: str = "200 OK") -> None:
        """Send a correct response."""
        data = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
        await self.raw(head(f"Content-Length: {len(data)}", *headers, status=status), data)

    async def reset(self) -> None:
        """Close with a reset instead of an end."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Behavior = Callable[[Connection], Awaitable[None]]


def head(*headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", "Connection: close", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def answer(content: Any, reason: str = "stop", **message: Any) -> str:
    message = {"role": "assistant", "content": content, **message}
    return json.dumps({"choices": [{"message": message, "finish_reason": reason}]})


def listing(*names: Any) -> str:
    return json.dumps({"object": "list", "data": [{"id": name} for name in names]})


def anagrams(count: int) -> list[str]:
    """Different names of the letters of `MODEL`, which are slow to compare with it."""
    orders = itertools.islice(itertools.permutations(reversed(MODEL)), count)
    return ["".join(order) for order in orders]


def bomb(wbits: int, gigabytes: int) -> list[bytes]:
    """Zeros, compressed a thousandfold: parts of one stream."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first = compressor.compress(bytes(2**24)) + compressor.flush(zlib.Z_FULL_FLUSH)
    block = compressor.compress(bytes(2**24)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return [first, *[block] * (gigabytes * 64 - 1)]


# ---------------------------------------------------------------------------------------- behaviors


def replies(body: bytes | str, *headers: str, status: str = "200 OK") -> Behavior:
    return lambda connection: connection.reply(body, *headers, status=status)


def sends(*parts: bytes) -> Behavior:
    return lambda connection: connection.raw(*parts)


def says(content: Any, reason: str = "stop", **message: Any) -> Behavior:
    return replies(answer(content, reason, **message))


def errors(status: str, *headers: str, message: str = "slow down") -> Behavior:
    return replies(json.dumps({"error": {"message": message}}), *headers, status=status)


def redirects(location: str, status: str = "307 Temporary Redirect") -> Behavior:
    """{port}: of this server."""

    async def behave(connection: Connection) -> None:
        target = location.format(port=connection.server.port)
        await connection.reply("", f"Location: {target}", status=status)

    return behave


def drips(*parts: bytes) -> Behavior:
    """The last part again and again."""

    async def behave(connection: Connection) -> None:
        await connection.raw(*parts[:-1])
        await connection.drip(parts[-1])

    return behave


def floods(*parts: bytes) -> Behavior:
    """The last part again and again, as fast as it is taken."""

    async def behave(connection: Connection) -> None:
        await connection.raw(*parts[:-1])
        await connection.flood(parts[-1])

    return behave


def bombs(encoding: str, wbits: int, kind: str = "application/json") -> Behavior:
    async def behave(connection: Connection) -> None:
        parts = bomb(wbits, gigabytes=3)
        await connection.raw(head(encoding, f"Content-Length: {sum(map(len, parts))}"), *parts)

    return behave


async def never_answers(connection: Connection) -> None:
    await asyncio.sleep(3600)


async def closes(connection: Connection) -> None:
    pass


async def resets(connection: Connection) -> None:
    await connection.reset()


async def resets_mid_body(connection: Connection) -> None:
    await connection.raw(head("Content-Length: 1000"), b'{"choices": [')
    await asyncio.sleep(0.05)
    await connection.reset()


async def echoes_request(connection: Connection) -> None:
    await connection.reply(answer(connection.server.requests[-1].decode("latin-1")))


CHUNKED = head("Transfer-Encoding: chunked")
ENCODED = base64.b64encode(f"x{KEY}y".encode()).decode()
GZIPPED = gzip.compress(answer(GOOD).encode())
PAGE = "<html><h1>Bad\nGateway</h1>" + "\x1b[2J padding " * 400_000 + "</html>"
TOO_MANY = "429 Too Many Requests"

CHAT: dict[str, Behavior] = {
    # The protocol.
    "garbage": sends(bytes(range(256)) * 40),
    "HTTP 0.9": sends(b"<html>It works!</html>"),
    "HTTP 9.9": sends(b"HTTP/9.9 200 OK\r\n\r\n{}"),
    "status 99999": sends(b"HTTP/1.1 99999 OK\r\n\r\n{}"),
    "content length too long": sends(head("Content-Length: 1000"), b'{"choices": ['),
    "content length too short": sends(head("Content-Length: 9"), answer(GOOD).encode()),
    "two content lengths": sends(head("Content-Length: 2", "Content-Length: 3"), b"{}"),
    "negative content length": sends(head("Content-Length: -1"), b"{}"),
    "chunk of no size": sends(CHUNKED, b"zz\r\n{}\r\n"),
    "closes": closes,
    "resets": resets,
    "resets in the body": resets_mid_body,
    # Time.
    "never answers": never_answers,
    "drips the body": drips(head("Content-Length: 1000000"), b" "),
    "drips chunks": drips(CHUNKED, b"1\r\n \r\n"),
    "drips the headers": drips(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
    "drips an error": drips(head("Content-Length: 1000000", status="500 Error"), b" "),
    "continues for ever": drips(b"HTTP/1.1 100 Continue\r\n\r\n"),
    # Size.
    "endless chunks": floods(CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"),
    "endless headers": floods(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n" * 1000),
    "huge header": floods(b"HTTP/1.1 200 OK\r\nX-More: ", b"x" * 65536),
    "endless error": floods(head(status="500 Error"), b"x" * 65536),
    "50 MB of text": sends(
        head("Content-Length: 50000000"),
        b'{"choices":[{"message":{"content":"',
        *[b"x" * 50_000] * 999,
    ),
    "5,000 characters": says("x " * 2500),
    # Encodings.
    "gzip": replies(GZIPPED, "Content-Encoding: gzip"),
    "gzip bomb": bombs("Content-Encoding: gzip", 31),
    "deflate bomb": bombs("Content-Encoding: deflate", 15),
    "gzip twice": replies(gzip.compress(GZIPPED), "Content-Encoding: gzip, gzip"),
    "gzip that is none": replies(b"no gzip", "Content-Encoding: gzip"),
    "brotli that is none": replies(b"no brotli", "Content-Encoding: br"),
    "unknown encoding": replies(answer(GOOD), "Content-Encoding: x-secret"),
    "character set bomb": bombs("Content-Type: text/plain; charset=zlib_codec", 15),
    # Statuses and pauses.
    "429": errors(TOO_MANY),
    "429, pause of 0.01 s": errors(TOO_MANY, "Retry-After: 0.01"),
    "429, negative pause": errors(TOO_MANY, "Retry-After: -600"),
    "429, pause not a number": errors(TOO_MANY, "Retry-After: nan"),
    "429, endless pause": errors(TOO_MANY, "Retry-After: inf"),
    "429, huge pause": errors(TOO_MANY, "Retry-After: 1e308"),
    "429, pause until 2999": errors(TOO_MANY, "Retry-After: Fri, 01 Jan 2999 00:00:00 GMT"),
    "429, pause until the year 9…9": errors(
        TOO_MANY, f"Retry-After: Fri, 01 Jan {'9' * 500} 00:00:00 GMT"
    ),
    "500": errors("500 Internal Server Error"),
    "502 with a page of 5 MB": replies(PAGE, status="502 Bad Gateway"),
    "503": errors("503 Service Unavailable"),
    "304": errors("304 Not Modified"),
    "deep error": replies('{"error":' * 7000, status="400 Bad Request"),
    # Redirects.
    "redirect to another host": redirects("http://localhost:{port}/v1/chat/completions"),
    "redirect to another port": redirects("http://127.0.0.1:9/v1/chat/completions"),
    "redirect to https": redirects("https://127.0.0.1:{port}/v1/chat/completions"),
    "redirect to a file": redirects("file:///etc/passwd"),
    "redirect to no address": redirects("http://[::"),
    "redirect with a password": redirects("http://user:hunter2@127.0.0.2/?token=hunter2"),
    "redirect with the key": redirects(f"http://127.0.0.2/{KEY}"),
    "redirect in a circle": redirects("/v1/chat/completions"),
    "redirect on the same host": redirects("/v1/good/chat/completions"),
    # The key.
    "key": says(f"the key is {KEY}"),
    "key after white space": says(" " * 5000 + KEY),
    "key after line breaks in an error": errors("400 Bad Request", message="\n" * 4090 + KEY),
    "key after null characters": says("\0 " * 1500 + KEY),
    "key in pieces": says("the key is " + " - ".join(KEY)),
    "key in lines": says(f"first {KEY[:13]} and\nthen {KEY[13:]}"),
    "key in other case": says(f"the key is {KEY.swapcase()}"),
    "key in base64": says(f"data {ENCODED}"),
    "key in hexadecimal": says(f"data {KEY.encode().hex(' ')}"),
    "key percent-encoded": says("".join(f"%{byte:02X}" for byte in KEY.encode())),
    "part of the key": says(f"it ends with {KEY[-14:]}"),
    "key in an error": errors("400 Bad Request", message=f"Bearer {KEY[:16]} {KEY[16:]} is wrong"),
    "key in a header": replies("{}", f"X-Key: {KEY}", status=f"400 {KEY}"),
    "key in a broken status line": sends(f"HTTP/1.1 {KEY}\r\n\r\n".encode()),
    "request sent back": echoes_request,
    # The content.
    "half JSON": replies('{"choices": [{"message": {"content": "a'),
    "empty": replies(""),
    "list": replies("[]"),
    "string": replies('"text"'),
    "no choices": replies('{"id": 1}'),
    "null choices": replies('{"choices": null}'),
    "empty choices": replies('{"choices": []}'),
    "choices by name": replies('{"choices": {"0": 1}}'),
    "choice is a number": replies('{"choices": [1]}'),
    "message is a string": replies('{"choices": [{"message": "text"}]}'),
    "null content": says(None),
    "content is a list": says([{"type": "text", "text": GOOD}]),
    "content is a number": says(7),
    "content is an image": says({"type": "image_url", "image_url": {"url": "http://127.0.0.1:9"}}),
    "content is true": says(True),
    "deep JSON": replies("[" * 1_000_000),
    "deep and closed JSON": replies('{"choices":' + "[" * 500 + "]" * 500 + "}"),
    "huge number": replies('{"choices": [' + "9" * 1_000_000 + "]}"),
    "not a number": replies('{"choices": [NaN, Infinity]}'),
    "not UTF-8": replies(answer("caf\u00e9").encode("ascii").replace(b"\\u00e9", b"\xe9")),
    "lone surrogates": says("a \ud83d square \udcff"),
    "escape codes": says("\x1b[2J\x1b]0;title\x07 a \x9b31m square"),
    "null characters": says("a\0square\0"),
    "right to left": says("a \u202esquare\u2069 \u2028 end"),
    "refusal": says(None, refusal="I \x1b[31m must\nnot \ud83d"),
    "content filter": says("a", "content_filter"),
    "nothing within the length": says("", "length"),
    "error with status 200": replies('{"error": {"message": "GPU \\u001b[2J lost"}}'),
}
MODELS: dict[str, Behavior] = {
    "models: garbage": CHAT["garbage"],
    "models: closes": closes,
    "models: never answers": never_answers,
    "models: drips the body": CHAT["drips the body"],
    "models: drips the headers": CHAT["drips the headers"],
    "models: continues for ever": CHAT["continues for ever"],
    "models: endless chunks": CHAT["endless chunks"],
    "models: gzip bomb": CHAT["gzip bomb"],
    "models: wrong types": replies('{"data": [{"id": {"a": 1}}, {"id": 7}, 3]}'),
    "models: not a list": replies('{"data": 7}'),
    "models: deep JSON": CHAT["deep JSON"],
    "models: 100,000 names": replies(listing(*map(str, range(100_000)))),
    "models: 4 MB of anagrams": replies(listing(*anagrams(160_000))),
    "models: escape codes": replies(listing("\x1b[2J\x07 name \ud83d")),
    "models: key in a name": replies(listing(f"it is {KEY}", KEY[:14])),
    "models: key in an error": errors("503 Loading", message=f"Bearer {KEY}"),
    "models: redirect to another host": redirects("http://localhost:{port}/v1/models"),
}
# What ends at the deadline and not before.
SLOW = {
    name
    for name in (*CHAT, *MODELS)
    if name.removeprefix("models: ").startswith(("never", "drips", "continues"))
}


class MisbehavingServer:
    """Listens on a port of localhost, in a thread of its own, until `stop`."""

    def __init__(self) -> None:
        self.models = ""  # the behavior; "": a good answer
        self.requests: list[bytes] = []  # heads
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _run(self, ready: threading.Event) -> None:
        async def main() -> None:
            self._stopped = asyncio.Event()
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._stopped.wait()
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._loop.run_until_complete(main())
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(request)
            fields = dict(line.lower().split(b": ", 1) for line in request.splitlines()[1:-1])
            body = await reader.readexactly(int(fields.get(b"content-length", 0)))
            path = request.split()[1]
            if path.endswith(b"/models"):
                behavior = MODELS.get(self.models, replies(listing(MODEL)))
            else:
                prompt = json.loads(body)["messages"][0]["content"][-1]["text"]
                behavior = CHAT.get(prompt, says(GOOD))
                if b"/good/" in path:
                    behavior = says(GOOD)
            await behavior(Connection(self, writer))
        except (OSError, EOFError):
            pass  # the client has gone
        finally:
            self._tasks.discard(task)
            writer.close()
