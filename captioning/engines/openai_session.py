"""The requests of one `describe`: sent at once, tried again where that can help, and paused."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING

from captioning.engines import UNFIT, Failure, Request, unfit
from captioning.engines.openai_client import plain_errors
from captioning.engines.openai_messages import (
    Redirected,
    Refused,
    Retry,
    StatusError,
    data_uri,
    retry_after,
    text_of,
)
from lattec_jax.runtime.errors import EngineError
from lattec_jax.runtime.text import escape_unprintable

if TYPE_CHECKING:
    from captioning.engines.openai import OpenAIEngine

log = logging.getLogger(__name__)

_LONGEST_BACKOFF = 60.0  # seconds
_LONGEST_PAUSE = 600.0  # seconds; a server that asks for more has run out of a quota
_LEAST_LOST = 20  # requests in a row without an answer after which the server counts as lost
_TRANSIENT = (408, 409, 425, 429)  # statuses that are worth another attempt, and all from 500 on


class Session:
    """The requests of one `describe`. Its coroutines run in the event loop's thread alone."""

    def __init__(self, engine: OpenAIEngine) -> None:
        self._engine = engine
        self._client = engine.client()
        self._resume = 0.0  # when requests may be sent again, on the monotonic clock
        self._lost = 0  # requests given up since the server last answered one

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def answer(self, request: Request) -> str | Failure:
        """The text for a request, after as many attempts as it takes and the settings allow."""
        import anyio

        engine, problem = self._engine, ""
        try:
            image = await anyio.to_thread.run_sync(data_uri, request.images)
        except UNFIT as error:
            return unfit(error)
        for attempt in range(engine.attempts):
            if attempt:
                await anyio.sleep(self._backoff(attempt))
            while (pause := self._resume - time.monotonic()) > 0:
                await anyio.sleep(pause)
            try:
                text = await self._attempt(request.prompt, image)
            except Retry as error:
                problem = str(error)
            except Refused as error:
                self._lost = 0
                return Failure(engine.line(f"{_count(attempt + 1)}: {error}"))
            else:
                self._lost = 0
                return text
        self._lost += 1
        reason = engine.line(f"{_count(engine.attempts)}: {problem}")
        # Without this, a server that has gone would be asked for every image that is left.
        if self._lost >= max(_LEAST_LOST, 2 * engine.concurrency):
            raise EngineError(
                f"the server at {engine.base_url} did not answer the last {self._lost} requests, "
                f"the last one {reason}. Check the server, then run the same command: it continues"
            )
        return Failure(reason)

    def _backoff(self, attempt: int) -> float:
        """Seconds before an attempt, numbered from 0; spread, as many wait at once."""
        longest = min(_LONGEST_BACKOFF, self._engine.backoff * 2.0 ** (attempt - 1))
        return longest * random.uniform(0.75, 1.0)

    async def _attempt(self, prompt: str, image: str) -> str:
        """Send one request.

        Raises:
            Retry, Refused: it failed.
            EngineError: so would every other.
        """
        import anyio

        engine = self._engine
        content = [
            # The image first, as LLaVA was trained.
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": prompt},
        ]
        try:
            with plain_errors(), anyio.fail_after(engine.timeout):
                answer = await self._client.chat.completions.with_raw_response.create(
                    model=engine.identity.model,
                    messages=[{"role": "user", "content": content}],
                    temperature=0,
                    max_tokens=engine.max_new_tokens,
                )
        except TimeoutError:
            raise Retry(f"no whole answer within {engine.timeout:g} s") from None
        except Redirected as error:
            raise engine.redirect_refused(error) from None
        except StatusError as error:
            raise await self._status_error(error) from None
        return engine.without_key(text_of(answer.http_response.text))

    async def _status_error(self, error: StatusError) -> Exception:
        """What a status that is not 2xx means for the request, or for all."""
        engine, status = self._engine, error.status
        if status in (401, 403):
            return engine.key_refused(error)
        if status in (404, 405):
            return await engine.not_found(error)
        said = engine.line(error.said)
        if status not in _TRANSIENT and status < 500:
            return Refused(said)
        pause = retry_after(error.retry_after)
        if pause > _LONGEST_PAUSE:
            return EngineError(
                f"the server at {engine.base_url} asks to wait {pause:.6g} s: {said}. Run the same "
                "command then: it continues"
            )
        if pause:
            self._hold(pause, said)
        if status == 429:
            return Retry(
                "too many requests, a smaller config.descriptions.openai.concurrency may help: "
                f"{said}"
            )
        return Retry(said)

    def _hold(self, pause: float, said: str) -> None:
        """Let all requests wait, in seconds."""
        now = time.monotonic()
        if self._resume < now:
            log.warning("the server asks to wait %.3g s: %s", pause, escape_unprintable(said))
        self._resume = max(self._resume, now + pause)


def _count(attempts: int) -> str:
    return f"after {attempts} attempt{'s' * (attempts > 1)}"
