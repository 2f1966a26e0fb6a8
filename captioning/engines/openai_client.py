"""The HTTP client under the `openai` package: what a server can make it do is bounded.

A body counts as it comes, compressed and decompressed, before anything is made of it: the libraries
below would decompress and keep all of it. It is read as UTF-8 whatever the server calls it, because
some of Python's character sets decompress. Redirects to another scheme, host or port are refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from captioning.engines.openai_messages import Redirected, Refused, Retry, StatusError
from lattec_jax.runtime.errors import EngineError

if TYPE_CHECKING:
    import httpx

MAX_BODY_BYTES = 2**22  # of an answer or a list of models, compressed and decompressed
MAX_ERROR_BYTES = 2**16  # of the body of an error; the rest is not read
MAX_REDIRECTS = 5
_ENCODINGS = ("gzip", "x-gzip", "deflate")  # of which the first is asked for


def make_client(allow_redirects: bool) -> httpx.AsyncClient:
    """A client for `openai.AsyncOpenAI(http_client=...)`.

    It raises `StatusError` where the status is not 2xx, `Refused` for a body that is too large,
    `Retry` for one that cannot be decompressed, and `Redirected` for a redirect elsewhere. Proxies
    and certificates come from the environment (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE).

    Args:
        allow_redirects: also to another scheme, host or port.

    Raises:
        EngineError: the environment names a proxy that cannot be used.
    """
    import openai

    class Client(openai.DefaultAsyncHttpxClient):
        async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
            options.update(stream=True, follow_redirects=False)
            for _ in range(MAX_REDIRECTS + 1):
                response = await super().send(request, **options)
                try:
                    target = response.next_request
                    if target is None:
                        return await _received(response)
                finally:
                    await response.aclose()
                if not allow_redirects and _origin(target.url) != _origin(request.url):
                    raise Redirected(_shown(target.url))
                request = target
            raise Retry(f"the server redirects more than {MAX_REDIRECTS} times")

    try:
        return Client(headers={"Accept-Encoding": _ENCODINGS[0]}, timeout=None)
    except Exception as error:  # noqa: BLE001 - of httpx or httpx2, whichever openai has
        # Other errors may quote a part of the proxy's password.
        reason = f": {error}" if isinstance(error, ImportError) else ""
        raise EngineError(
            f"the proxy that the environment names cannot be used{reason}. Expected "
            "SCHEME://HOST:PORT with a scheme that is known here, such as http. Check the "
            "environment variables HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
        ) from None


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let the `openai` client raise what its HTTP client does, and `Retry` for lost connections.

    Its own errors hold the request with its key: nothing is chained to them.
    """
    import openai

    try:
        yield
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        # Versions before 3 wrap whatever the HTTP client raises.
        if isinstance(cause, (Retry, Refused, StatusError, Redirected)):
            raise cause from None
        raise Retry(f"the connection failed: {str(cause) or type(cause).__name__}") from None


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _shown(url: httpx.URL) -> str:
    """What of an address a base_url may have."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


async def _received(response: httpx.Response) -> httpx.Response:
    """The response with its whole body, decompressed and called UTF-8."""
    if not response.is_success:
        try:
            body = await _body(response, MAX_ERROR_BYTES, whole=False)
        except (Refused, Retry) as error:
            body = str(error).encode()
        text = body.decode("utf-8", errors="replace")
        raise StatusError(
            response.status_code, text, response.headers.get("retry-after", ""), str(response.url)
        )
    return type(response)(
        response.status_code,
        headers={"Content-Type": "application/json; charset=utf-8"},
        content=await _body(response, MAX_BODY_BYTES, whole=True),
        request=response.request,
    )


async def _body(response: httpx.Response, limit: int, whole: bool) -> bytes:
    """The decompressed body; without `whole`, at most `limit` bytes of it.

    Raises:
        Refused: it is larger, or has an encoding that was not asked for.
        Retry: it cannot be decompressed.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    decompressor = None
    if encoding in _ENCODINGS:
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib
    elif encoding not in ("", "identity"):
        raise Refused(f"the answer has the content encoding {encoding!r}, which was not asked for")
    body, received = bytearray(), 0
    async for part in response.aiter_raw():
        received += len(part)
        if decompressor is not None:
            try:
                part = decompressor.decompress(part, limit + 1 - len(body))
            except zlib.error as error:
                raise Retry(f"the answer cannot be decompressed: {error}") from None
        body += part
        if max(received, len(body)) > limit:
            if whole:
                raise Refused(f"the answer has more than {limit:,} bytes")
            break
    return bytes(body[:limit])
