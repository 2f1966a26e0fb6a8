"""A captioning engine behind a server with the OpenAI chat API: vLLM, SGLang, llama.cpp, a service.

Every description is one request to `<base_url>/chat/completions`; `concurrency` of them are in
flight. The `openai` client sends them. Its own retries are switched off: they do not know a
malformed answer, and cannot make the other requests wait when the server asks for a pause.

The server is not trusted. A request ends after `timeout` seconds in all, from the connection to the
last byte; sizes and redirects are bounded (`openai_client.py`); what the server says reaches texts,
messages and files without the key (`key_filter.py`).
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from captioning.engines import Failure, Identity, Request, checked
from captioning.engines.key_filter import KeyFilter
from captioning.engines.openai_client import make_client, plain_errors
from captioning.engines.openai_messages import (
    LONG_SIDE,
    Redirected,
    Refused,
    Retry,
    StatusError,
    model_names,
    one_line,
)
from captioning.engines.openai_session import Session
from lattec_jax.runtime.config import did_you_mean
from lattec_jax.runtime.errors import ConfigError, EngineError
from lattec_jax.runtime.text import sanitize

if TYPE_CHECKING:
    import openai

Answers = Generator[tuple[Request, str | Failure], None, None]

_NO_KEY = "none"  # local servers take any key, but the client insists on one
_CHECK_SECONDS = 20.0  # for the list of models, from the connection to the last byte
_LINE = 300  # characters of what a server says in a message


def identity(config: ConfigDict) -> Identity:
    """Of the model that the configuration names; no server is asked.

    Raises:
        ConfigError: the model is not named.
    """
    settings, length = config.descriptions.openai, config.descriptions.max_new_tokens
    where = "config.descriptions.openai"
    if not settings.model:
        raise ConfigError(
            f"{where}.model: expected the model as the server names it (see "
            f"{settings.base_url.rstrip('/')}/models), found an empty string; for example "
            f"--{where}.model=llava-hf/llava-v1.6-mistral-7b-hf"
        )
    return Identity(
        "openai",
        settings.model,
        f"temperature 0, at most {length} new tokens, long side at most {LONG_SIDE}",
    )


def processes(config: ConfigDict) -> int:
    """One: the server does the work, and `concurrency` keeps it busy."""
    return 1


def load(config: ConfigDict) -> OpenAIEngine:
    """Check that the server is there and has the model.

    Raises:
        ConfigError: as `identity`.
        EngineError: the client, the server, the model or the key is missing.
    """
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise EngineError(
            f"the engine 'openai' needs the package of this name ({error}); install it with "
            "pip install -e '.[openai]'"
        ) from error
    engine = OpenAIEngine(config)
    engine.check_server()
    return engine


# An iterator that something still refers to when the interpreter ends, such as the traceback of an
# error, must be closed while the thread of its event loop can still run; later, it would wait for
# that thread for ever.
_unfinished: weakref.WeakSet[Answers] = weakref.WeakSet()


@atexit.register
def _close_unfinished() -> None:
    for answers in list(_unfinished):
        answers.close()


class OpenAIEngine:
    """Sends requests to the server, and waits and tries again where that can help."""

    def __init__(self, config: ConfigDict, backoff: float = 1.0) -> None:
        """Connects to nothing yet.

        Args:
            config: a configuration that `identity` accepts.
            backoff: seconds before the second attempt; they double with each further one.

        Raises:
            ConfigError: as `identity`.
            EngineError: the key cannot be sent.
        """
        self.identity = identity(config)
        settings = config.descriptions.openai
        self.base_url: str = settings.base_url
        self.concurrency: int = settings.concurrency
        self.timeout: float = settings.timeout
        self.attempts: int = settings.retries + 1
        self.max_new_tokens: int = config.descriptions.max_new_tokens
        self.backoff = backoff
        self.allow_redirects: bool = settings.allow_redirects
        self._key_variable: str = settings.key_variable
        self._key = os.environ.get(self._key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise EngineError(
                f"the environment variable {self._key_variable} "
                "(config.descriptions.openai.key_variable) holds characters that no key has; "
                "expected printable ASCII. Set it again"
            )
        self._key_filter = KeyFilter(self._key)

    def describe(self, requests: Iterable[Request]) -> Iterator[tuple[Request, str | Failure]]:
        """Answer each request as soon as its answer is there.

        At most `concurrency` requests are pulled that have not been answered. Closing the iterator
        cancels them.

        Raises:
            EngineError: the key is refused, the model or the address is unknown, or the server does
                not answer any more.
        """
        answers = self._answers(requests)
        _unfinished.add(answers)
        return answers

    def _answers(self, requests: Iterable[Request]) -> Answers:
        from anyio.from_thread import start_blocking_portal

        pending: dict[Future[str | Failure], Request] = {}
        # The event loop has a thread of its own, so that answers are taken in and images are
        # encoded while the caller writes and reads files.
        with start_blocking_portal() as portal:
            session = Session(self)
            try:
                for request in requests:
                    pending[portal.start_task_soon(session.answer, request)] = request
                    if len(pending) >= self.concurrency:
                        yield from _answered(pending)
                while pending:
                    yield from _answered(pending)
            finally:
                for future in pending:
                    future.cancel()  # before its client is closed
                portal.call(session.close)

    def check_server(self) -> None:
        """Ask the server for its models. A server without that route passes.

        Raises:
            EngineError: no server answers, it refuses the key, or it does not have the model.
        """
        from anyio.from_thread import start_blocking_portal

        with start_blocking_portal() as portal:
            portal.call(self.check_models)

    async def check_models(self) -> None:
        """See `check_server`."""
        import anyio

        timeout, answer = min(self.timeout, _CHECK_SECONDS), None
        try:
            with plain_errors(), anyio.fail_after(timeout):
                async with self.client() as client:
                    answer = await client.models.with_raw_response.list()
        except TimeoutError:
            problem = f"no whole answer within {timeout:g} s"
        except (Retry, Refused) as error:
            problem = self.line(str(error))
        except Redirected as error:
            raise self.redirect_refused(error) from None
        except StatusError as error:
            if error.status in (401, 403):
                raise self.key_refused(error) from None
            if error.status in (404, 405, 501):
                return
            raise EngineError(
                f"the server at {self.base_url} cannot name its models: {self.line(error.said)}. "
                "Wait until it is ready, and check config.descriptions.openai.base_url"
            ) from None
        if answer is None:
            raise EngineError(
                f"no server answers at {self.base_url} ({problem}). Start one, for example with "
                "`vllm serve llava-hf/llava-v1.6-mistral-7b-hf`, wait until it listens, and check "
                "config.descriptions.openai.base_url"
            )
        names = model_names(answer.http_response.text)
        if names and self.identity.model not in names:
            hint = self.line(did_you_mean(self.identity.model, names))
            raise EngineError(
                f"config.descriptions.openai.model: the server at {self.base_url} has no model "
                f"{self.identity.model!r}; it has {self.line(', '.join(names))}"
                + (f". {hint}" if hint else "")
            )

    def client(self) -> openai.AsyncOpenAI:
        """A client without bounds in time: whoever uses it sets a deadline.

        Raises:
            ConfigError: `base_url` is no address.
            EngineError: the environment names a proxy that cannot be used.
        """
        import openai

        http_client = make_client(self.allow_redirects)
        try:
            return openai.AsyncOpenAI(
                api_key=self._key or _NO_KEY,
                base_url=self.base_url,
                timeout=None,
                max_retries=0,
                http_client=http_client,
            )
        except Exception as error:  # noqa: BLE001 - of httpx or httpx2, whichever openai has
            raise ConfigError(
                "config.descriptions.openai.base_url: expected an address such as "
                f"http://localhost:8000/v1, found {self.base_url!r}: {self.line(str(error))}"
            ) from None

    def key_refused(self, error: StatusError) -> EngineError:
        """Of the statuses 401 and 403."""
        state = "is set, but its value was not accepted" if self._key else "is not set"
        return EngineError(
            f"the server at {self.base_url} refuses access: {self.line(error.said)}. The key is "
            f"taken from the environment variable {self._key_variable} "
            f"(config.descriptions.openai.key_variable), which {state}"
        )

    def redirect_refused(self, error: Redirected) -> EngineError:
        """Images and prompts would go to another address."""
        return EngineError(
            f"the server at {self.base_url} redirects to {self.line(error.target)}, another "
            "address, which would be sent images and prompts. If that is the server that you want, "
            "set config.descriptions.openai.base_url to its address, or allow redirects with "
            "--config.descriptions.openai.allow_redirects=True"
        )

    async def not_found(self, error: StatusError) -> EngineError:
        """Of the statuses 404 and 405: an unknown model, or a wrong address."""
        try:
            await self.check_models()
        except EngineError as unknown_model:
            return unknown_model
        return EngineError(
            f"the server has nothing at {self.line(error.url)}: {self.line(error.said)}. Check "
            "config.descriptions.openai.base_url, which mostly ends with /v1, found "
            f"{self.base_url}, and config.descriptions.openai.model, found {self.identity.model}"
        )

    def line(self, text: str) -> str:
        """What came from outside in one line of bounded length, without the key."""
        text = sanitize(one_line(text))
        text = self._key_filter.masked(" ".join(text.split()))
        return text if len(text) <= _LINE else text[: _LINE - 1] + "…"

    def without_key(self, text: str) -> str:
        """The text as it may be written: it is searched for the key in this form, not before.

        Raises:
            Refused: it is too long, or contains the key or a long part of it.
        """
        written = checked(text)
        if isinstance(written, Failure):
            raise Refused(written.reason)
        if self._key_filter.found(written):
            raise Refused("the answer contains the API key, or a long part of it")
        return written


def _answered(pending: dict[Future[str | Failure], Request]) -> Answers:
    """Wait for an answer; take all that are there out of `pending`."""
    for future in wait(pending, return_when=FIRST_COMPLETED).done:
        yield pending.pop(future), future.result()
