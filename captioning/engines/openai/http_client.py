"""The HTTP client under the `openai` package, with bounds on what a server can make it do.

The size of a body is checked as it arrives, compressed and decompressed: the libraries below would
decompress and store all of it. It is read as UTF-8 whatever encoding the server states, because
some of Python's character sets decompress. Redirects to another scheme, host or port are refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from captioning.engines.openai.protocol import (
    RedirectError,
    RequestRefused,
    RetryableError,
    StatusError,
    error_message,
)
from lattec_jax.runtime.errors import EngineError

# Requests and responses are those of httpx or httpx2, whichever openai has: no type covers both.
MAX_BODY_BYTES = 2**22  # of a successful response, compressed and decompressed
MAX_ERROR_BYTES = 2**16  # of an error's body; the rest is not read
MAX_REDIRECTS = 5
_ENCODINGS = ("gzip", "x-gzip", "deflate")  # accepted; only the first is requested


def make_client(allow_redirects: bool) -> Any:
    """Return a client for `openai.AsyncOpenAI(http_client=...)`.

    It raises `StatusError` if the status is not 2xx, `RequestRefused` for a body that is too large,
    `RetryableError` for one that cannot be decompressed, and `RedirectError` for a redirect to
    another address unless `allow_redirects`. Proxies and certificates come from the environment
    (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE).

    Raises:
        EngineError: the environment names a proxy that cannot be used.
    """
    import openai

    class Client(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            options.update(stream=True, follow_redirects=False)
            for _ in range(MAX_REDIRECTS + 1):
                response = await super().send(request, **options)
                try:
                    target = response.next_request
                    if target is None:
                        return await _read_response(response)
                finally:
                    await response.aclose()
                url = target.url
                if not allow_redirects and _origin(url) != _origin(request.url):
                    bare = url.copy_with(username=None, password=None, query=None, fragment=None)
                    raise RedirectError(str(bare))
                request = target
            raise RetryableError(f"the server redirects more than {MAX_REDIRECTS} times")

    try:
        return Client(headers={"Accept-Encoding": _ENCODINGS[0]}, timeout=None)
    except Exception as error:  # noqa: BLE001 - of httpx or httpx2, whichever openai has
        # Other errors may quote a part of the proxy's password.
        reason = f": {error}" if isinstance(error, ImportError) else ""
        raise EngineError(
            f"the proxy that the environment names cannot be used{reason}. Expected "
            "SCHEME://HOST:PORT with a supported scheme such as http. Check the environment "
            "variables HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
        ) from None


@contextmanager
def request_errors(timeout: float) -> Iterator[None]:
    """Bound a request in time, and raise the exceptions of `make_client`'s client.

    `RetryableError` is also raised after `timeout` seconds, and for lost connections. The errors of
    the `openai` client hold the request with its key: nothing is chained to them.
    """
    import anyio
    import openai

    try:
        with anyio.fail_after(timeout):
            yield
    except TimeoutError:
        raise RetryableError(f"no complete response within {timeout:g} s") from None
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        # Before version 3, openai wraps whatever the HTTP client raises.
        if isinstance(cause, (RetryableError, RequestRefused, StatusError, RedirectError)):
            raise cause from None
        raise RetryableError(
            f"the connection failed: {str(cause) or type(cause).__name__}"
        ) from None


def _origin(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


async def _read_response(response: Any) -> Any:
    """Return the response with its full body, decompressed and declared as UTF-8."""
    if not response.is_success:
        try:
            body = await _read_body(response, MAX_ERROR_BYTES, truncate=True)
        except (RequestRefused, RetryableError) as error:
            body = str(error).encode()
        message = error_message(body.decode("utf-8", errors="replace"))
        retry_after = response.headers.get("retry-after", "")
        raise StatusError(response.status_code, message, retry_after, str(response.url))
    return type(response)(
        response.status_code,
        headers={"Content-Type": "application/json; charset=utf-8"},
        content=await _read_body(response, MAX_BODY_BYTES, truncate=False),
        request=response.request,
    )


async def _read_body(response: Any, limit: int, truncate: bool) -> bytes:
    """Return the decompressed body; of a larger one the start with `truncate`, else refuse it."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    decompressor = None
    if encoding in _ENCODINGS:
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib
    elif encoding not in ("", "identity"):
        raise RequestRefused(
            f"the response has the content encoding {encoding!r}, which was not requested"
        )
    body, received = bytearray(), 0
    async for chunk in response.aiter_raw():
        received += len(chunk)
        if decompressor is not None:
            try:
                chunk = decompressor.decompress(chunk, limit + 1 - len(body))
            except zlib.error as error:
                raise RetryableError(f"the response cannot be decompressed: {error}") from None
        body += chunk
        if max(received, len(body)) > limit:
            if not truncate:
                raise RequestRefused(f"the response has more than {limit:,} bytes")
            break
    return bytes(body[:limit])
