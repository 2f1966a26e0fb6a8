"""Send requests, retry what may succeed, and pause when the server asks for it."""

from __future__ import annotations

import logging
import random
import time

from captioning.engines import REQUEST_ERRORS, Failure, Request, Result
from captioning.engines.openai.errors import (
    RedirectError,
    RequestRefused,
    RetryableError,
    StatusError,
)
from captioning.engines.openai.http_client import translate_errors
from captioning.engines.openai.protocol import image_uri, response_text, retry_after_seconds
from captioning.engines.openai.server import Server
from lattec_jax.runtime.errors import EngineError
from lattec_jax.runtime.text import escape_unprintable

log = logging.getLogger(__name__)

_MAX_BACKOFF_S = 60.0
_MAX_PAUSE_S = 600.0  # a server that asks for more has probably run out of a quota
_MIN_LOST = 20  # consecutive requests without a response before the server counts as lost
_TRANSIENT_STATUSES = (408, 409, 425, 429)  # retried, as are all from 500 on


class Session:
    """The requests of one `describe`, which share a client and pauses.

    Its coroutines run in the thread of one event loop.
    """

    def __init__(
        self, server: Server, max_new_tokens: int, attempts: int, backoff: float, max_lost: int
    ) -> None:
        """Open a client.

        Args:
            server: to send requests to.
            max_new_tokens: maximum for a description.
            attempts: per request.
            backoff: seconds before the second attempt, doubled for each further one.
            max_lost: consecutive requests without a response that are tolerated, at least 20.
        """
        self._server = server
        self._client = server.client()
        self._max_new_tokens, self._attempts, self._backoff = max_new_tokens, attempts, backoff
        self._max_lost = max(_MIN_LOST, max_lost)
        self._resume_at = 0.0  # monotonic time before which nothing is sent
        self._lost = 0  # requests without a response since the server's last one

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def describe(self, request: Request) -> Result:
        """Return the text for a request, after retries where needed.

        Raises:
            EngineError: the error would repeat for every request.
        """
        import anyio

        server, problem = self._server, ""
        try:
            image = await anyio.to_thread.run_sync(image_uri, request.images)
        except REQUEST_ERRORS as error:
            return Failure.from_error(error)
        for attempt in range(self._attempts):
            if attempt:
                await anyio.sleep(self._delay(attempt))
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

    def _delay(self, attempt: int) -> float:
        """Return the seconds before an attempt (from 1), with jitter as many wait at once."""
        longest = min(_MAX_BACKOFF_S, self._backoff * 2.0 ** (attempt - 1))
        return longest * random.uniform(0.75, 1.0)

    async def _attempt(self, prompt: str, image: str) -> str:
        """Send one request and return its text.

        Raises:
            RetryableError, RequestRefused: the request failed.
            EngineError: every request would fail.
        """
        import anyio

        server = self._server
        content = [
            # The image comes first, as in LLaVA's training data.
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": prompt},
        ]
        try:
            with translate_errors(), anyio.fail_after(server.timeout):
                response = await self._client.chat.completions.with_raw_response.create(
                    model=server.model,
                    messages=[{"role": "user", "content": content}],
                    temperature=0,
                    max_tokens=self._max_new_tokens,
                )
        except TimeoutError:
            raise RetryableError(f"no complete response within {server.timeout:g} s") from None
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
        if status in (404, 405):
            return await server.not_found(error)
        message = server.quote(error.message)
        if status not in _TRANSIENT_STATUSES and status < 500:
            return RequestRefused(message)
        pause = retry_after_seconds(error.retry_after)
        if pause > _MAX_PAUSE_S:
            return EngineError(
                f"the server at {server.base_url} asks to wait {pause:.6g} s: {message}. Run the "
                "same command after that time: it continues"
            )
        if pause:
            self._pause(pause, message)
        if status == 429:
            return RetryableError(
                "too many requests, a smaller config.descriptions.openai.concurrency may help: "
                f"{message}"
            )
        return RetryableError(message)

    def _pause(self, seconds: float, message: str) -> None:
        """Hold back all requests."""
        now = time.monotonic()
        if self._resume_at < now:
            log.warning("the server asks to wait %.3g s: %s", seconds, escape_unprintable(message))
        self._resume_at = max(self._resume_at, now + seconds)


def _after(attempts: int) -> str:
    return f"after {attempts} attempt{'s' * (attempts > 1)}"
