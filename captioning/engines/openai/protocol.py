"""Requests to a server with the OpenAI chat API: their content, responses and errors."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping, Sequence

from PIL import Image

from captioning.collage import data_uri, single_image
from lattec_jax.runtime.safe_read import parse_json

MAX_SIDE = 1344  # pixels; LLaVA-NeXT downscales images larger than 1008
_MAX_MESSAGE_CHARS = 4096  # of the server's text that are processed for a message


class RetryableError(Exception):
    """An attempt failed, and another may succeed."""


class RequestRefused(Exception):
    """The request failed and would fail again; other requests may succeed."""


class StatusError(Exception):
    """A response whose status is not 2xx.

    Its message is an attribute only, so that no traceback contains what the server sent.
    """

    def __init__(self, status: int, message: str, retry_after: str, url: str) -> None:
        super().__init__(status)
        self.message = f"{status}: {message}"
        self.status, self.retry_after, self.url = status, retry_after, url


class RedirectError(Exception):
    """A redirect to another scheme, host or port."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target


def image_uri(images: Sequence[Image.Image]) -> str:
    """Return an image, or the collage of several, as a PNG data URI of at most `MAX_SIDE`."""
    image = single_image(images)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS, reducing_gap=None)
    return data_uri(image, "png", compress_level=1)  # three times as fast as 6, and 15 % larger


def response_text(body: str) -> str:
    """Return the text in the body of a response with status 200."""
    try:
        response = parse_json(body)
    except ValueError:
        raise RetryableError(
            f"the response is not JSON: {collapse(body) or 'it is empty'}"
        ) from None
    try:
        choice = response["choices"][0]
        message = choice["message"]
        text, reason = message.get("content"), choice.get("finish_reason")
        refusal = message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        # Some proxies report errors with status 200.
        raise RetryableError(f"the response contains no text: {error_message(body)}") from None
    if reason == "content_filter":
        raise RequestRefused("the server's content filter withheld the text")
    if refusal:
        raise RequestRefused(f"the model refuses: {collapse(str(refusal))}")
    if not text and reason == "length":
        raise RequestRefused(
            "no text within config.descriptions.max_new_tokens: a reasoning model needs more "
            "tokens, or its reasoning switched off on the server"
        )
    if not isinstance(text, str):
        raise RetryableError(f"the response contains no text: {collapse(body)}")
    return text


def retry_after_seconds(value: str) -> float:
    """Parse a "Retry-After" header, a number of seconds or a date; 0 if it is neither."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def error_message(body: str) -> str:
    """Return the message in the body of an error, in any of the usual fields, or the body."""
    try:
        content = parse_json(body)
    except ValueError:
        content = None
    return collapse(_find_message(content) or body)


def _find_message(content: object) -> str:
    for key in ("error", "message", "detail"):
        if isinstance(content, Mapping) and content.get(key):
            return _find_message(content[key]) or str(content[key])
    return content if isinstance(content, str) else ""


def collapse(text: str) -> str:
    """Return the start of the server's text with white space collapsed.

    Collapsing comes first: white space could otherwise push the end of a key past the bound, and
    the rest of the key would not be recognized.
    """
    return " ".join(text.split())[:_MAX_MESSAGE_CHARS]


def model_names(body: str) -> list[str]:
    """Return the names in a list of models, or nothing if the body is not such a list."""
    try:
        names = [model["id"] for model in parse_json(body)["data"]]
    except (ValueError, KeyError, TypeError):
        return []
    return [name for name in names if isinstance(name, str)]
