"""The configured server: address, key, model list, and the errors that end a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from captioning.engines import Failure, clean_result
from captioning.engines.openai.http_client import make_client, request_errors
from captioning.engines.openai.protocol import (
    RedirectError,
    RequestRefused,
    RetryableError,
    StatusError,
    collapse,
    model_names,
)
from lattec_jax.runtime.api_key import KeyFilter, read_api_key
from lattec_jax.runtime.config import did_you_mean
from lattec_jax.runtime.errors import ConfigError, EngineError
from lattec_jax.runtime.text import sanitize

if TYPE_CHECKING:
    import openai

_NO_KEY = "none"  # local servers accept any key, but the client requires one
_MODEL_LIST_TIMEOUT_S = 20.0  # from the connection to the last byte
_MAX_QUOTE_CHARS = 300  # of the server's text in a message


class Server:
    """The server of `config.descriptions.openai`."""

    def __init__(self, settings: ConfigDict, model: str) -> None:
        """Read the key from the environment; raise EngineError if it cannot be sent."""
        self.model = model
        self.base_url: str = settings.base_url
        self.timeout: float = settings.timeout
        self._allow_redirects: bool = settings.allow_redirects
        self._key_variable: str = settings.key_variable
        self._key = read_api_key(self._key_variable)
        self._key_filter = KeyFilter(self._key)

    def client(self) -> openai.AsyncOpenAI:
        """Return a client without a timeout: the caller sets a deadline for each request."""
        import openai

        http_client = make_client(self._allow_redirects)
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
                f"http://localhost:8000/v1, found {self.base_url!r}: {self.quote(str(error))}"
            ) from None

    async def check_model(self) -> None:
        """Raise EngineError unless the server lists the model, or has no list of models."""
        try:
            with request_errors(min(self.timeout, _MODEL_LIST_TIMEOUT_S)):
                async with self.client() as client:
                    response = await client.models.with_raw_response.list()
        except (RetryableError, RequestRefused) as error:
            raise EngineError(
                f"no server answers at {self.base_url} ({self.quote(str(error))}). Start one, for "
                "example with `vllm serve llava-hf/llava-v1.6-mistral-7b-hf`, wait until it "
                "listens, and check config.descriptions.openai.base_url"
            ) from None
        except RedirectError as error:
            raise self.redirect_refused(error) from None
        except StatusError as error:
            if error.status in (401, 403):
                raise self.access_refused(error) from None
            if error.status in (404, 405, 501):
                return
            raise EngineError(
                f"the server at {self.base_url} cannot list its models: "
                f"{self.quote(error.message)}. Wait until it is ready, and check "
                "config.descriptions.openai.base_url"
            ) from None
        names = model_names(response.http_response.text)
        if names and self.model not in names:
            hint = self.quote(did_you_mean(self.model, names))
            raise EngineError(
                f"config.descriptions.openai.model: the server at {self.base_url} has no model "
                f"{self.model!r}; it has {self.quote(', '.join(names))}"
                + (f". {hint}" if hint else "")
            )

    def access_refused(self, error: StatusError) -> EngineError:
        """Return the error for the statuses 401 and 403."""
        state = "is set, but its value was not accepted" if self._key else "is not set"
        return EngineError(
            f"the server at {self.base_url} refuses access: {self.quote(error.message)}. The key "
            f"is read from the environment variable {self._key_variable} "
            f"(config.descriptions.openai.key_variable), which {state}"
        )

    def redirect_refused(self, error: RedirectError) -> EngineError:
        """Return the error for a redirect, which would send images and prompts elsewhere."""
        return EngineError(
            f"the server at {self.base_url} redirects to {self.quote(error.target)}, another "
            "address, which would receive images and prompts. If that is the intended server, "
            "set config.descriptions.openai.base_url to its address, or allow redirects with "
            "--config.descriptions.openai.allow_redirects=True"
        )

    def quote(self, text: str) -> str:
        """Return text from the server for a message: one line, bounded, the key masked."""
        text = sanitize(collapse(text))
        text = self._key_filter.mask(" ".join(text.split()))
        return text if len(text) <= _MAX_QUOTE_CHARS else text[: _MAX_QUOTE_CHARS - 1] + "…"

    def check_text(self, text: str) -> str:
        """Return a description as it is stored; refuse one with a long part of the key."""
        result = clean_result(text)
        if isinstance(result, Failure):
            raise RequestRefused(result.reason)
        if self._key_filter.contains_key(result):
            raise RequestRefused("the response contains the API key, or a long part of it")
        return result
