"""Send requests, retry what may succeed, and pause when the server asks for it."""

from __future__ import annotations

import logging
import random
import time

from ml_collections import ConfigDict

from captioning.engines import REQUEST_ERRORS, Failure, Request, Result
from captioning.engines.openai.http_client import request_errors
from captioning.engines.openai.protocol import (
    RedirectError,
    RequestRefused,
    RetryableError,
    StatusError,
    image_uri,
    response_text,
    retry_after_seconds,
)
from captioning.engines.openai.server import Server
from lattec_jax.runtime.errors import EngineError
from lattec_jax.runtime.text import escape_unprintable

log = logging.getLogger(__name__)

_MAX_BACKOFF_S = 60.0
_MAX_PAUSE_S = 600.0  # a server that asks for more has probably run out of a quota
_MIN_LOST = 20
_TRANSIENT_STATUSES = (408, 409, 425, 429)  # retried, as are all from 500 on


class Session:
    """The requests of one `describe`, which share a client and pauses.

    Its coroutines run in the thread of one event loop.
    """

    def __init__(self, server: Server, settings: ConfigDict, backoff: float) -> None:
        """Open a client, which the caller closes.

        Args:
            settings: `config.descriptions`.
            backoff: seconds before the second attempt, doubled for each further one.
        """
        self.client = server.client()
        self._server, self._backoff = server, backoff
        self._max_new_tokens: int = settings.max_new_tokens
        self._attempts: int = settings.openai.retries + 1
        # Consecutive requests without a response before the server counts as lost.
        self._max_lost: int = max(_MIN_LOST, 2 * settings.openai.concurrency)
        self._resume_at = 0.0  # monotonic time before which nothing is sent
        self._lost = 0  # requests without a response since the server's last one

    async def describe(self, request: Request) -> Result:
        """Return the text for a request, after retries where needed."""
        import anyio

        server, problem = self._server, ""
        try:
            image = await anyio.to_thread.run_sync(image_uri, request.images)
        except REQUEST_ERRORS as error:
            return Failure.from_error(error)
        for attempt in range(self._attempts):
            if attempt:
                longest = min(_MAX_BACKOFF_S, self._backoff * 2.0 ** (attempt - 1))
                await anyio.sleep(longest * random.uniform(0.75, 1.0))  # as many wait at once
            while (pause := self._resume_at - time.monotonic()) > 0:
                await anyio.sleep(pause)
            try:
                text = await self._attempt(request.prompt, image)
            except RetryableError as error:
                problem = str(error)
            except RequestRefused as error:
                self._lost = 0
                return Failure(server.quote(f"{_after(attempt + 1)}: {error}"))
            else:
                self._lost = 0
                return text
        self._lost += 1
        reason = server.quote(f"{_after(self._attempts)}: {problem}")
        # Without this, all remaining images would be sent to a server that is down.
        if self._lost >= self._max_lost:
            raise EngineError(
                f"the server at {server.base_url} did not answer the last {self._lost} requests, "
                f"the last one {reason}. Check the server, then run the same command: it continues"
            )
        return Failure(reason)

    async def _attempt(self, prompt: str, image: str) -> str:
        """Send one request and return its text."""
        server = self._server
        content = [
            # The image comes first, as in LLaVA's training data.
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": prompt},
        ]
        try:
            with request_errors(server.timeout):
                response = await self.client.chat.completions.with_raw_response.create(
                    model=server.model,
                    messages=[{"role": "user", "content": content}],
                    temperature=0,
                    max_tokens=self._max_new_tokens,
                )
        except RedirectError as error:
            raise server.redirect_refused(error) from None
        except StatusError as error:
            raise await self._status_error(error) from None
        return server.check_text(response_text(response.http_response.text))

    async def _status_error(self, error: StatusError) -> Exception:
        """Return the exception for a status that is not 2xx."""
        server, status = self._server, error.status
        if status in (401, 403):
            return server.access_refused(error)
        message = server.quote(error.message)
        if status in (404, 405):  # an unknown model or a wrong address
            try:
                await server.check_model()
            except EngineError as unknown_model:
                return unknown_model
            return EngineError(
                f"the server has nothing at {server.quote(error.url)}: {message}. Check "
                "config.descriptions.openai.base_url, which usually ends with /v1, found "
                f"{server.base_url}, and config.descriptions.openai.model, found {server.model}"
            )
        if status not in _TRANSIENT_STATUSES and status < 500:
            return RequestRefused(message)
        pause = retry_after_seconds(error.retry_after)
        if pause > _MAX_PAUSE_S:
            return EngineError(
                f"the server at {server.base_url} asks to wait {pause:.6g} s: {message}. Run the "
                "same command after that time: it continues"
            )
        if pause:  # for all requests
            now = time.monotonic()
            if self._resume_at < now:
                shown = escape_unprintable(message)
                log.warning("the server asks to wait %.3g s: %s", pause, shown)
            self._resume_at = max(self._resume_at, now + pause)
        if status == 429:
            return RetryableError(
                "too many requests, a smaller config.descriptions.openai.concurrency may help: "
                f"{message}"
            )
        return RetryableError(message)


def _after(attempts: int) -> str:
    return f"after {attempts} attempt{'s' * (attempts > 1)}"
