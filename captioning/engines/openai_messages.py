"""What is sent to and what comes from a server with the OpenAI chat API."""

from __future__ import annotations

import base64
import email.utils
import io
import time
from collections.abc import Mapping, Sequence

from PIL import Image

from captioning.collage import single_image
from lattec_jax.runtime.safe_read import parse_json

SHOWN = 4096  # characters of what a server says that are looked at for a message
LONG_SIDE = 1344  # pixels; LLaVA-NeXT scales what is larger than 1008 down


class Retry(Exception):
    """A failed attempt that is worth another."""


class Refused(Exception):
    """What would fail again, for this request alone."""


class StatusError(Exception):
    """An answer whose status is not 2xx. What it says is no part of the traceback."""

    def __init__(self, status: int, body: str, retry_after: str, url: str) -> None:
        super().__init__(status)
        self.said = f"{status}: {message_in(body)}"
        self.status, self.retry_after, self.url = status, retry_after, url


class Redirected(Exception):
    """A redirect to another scheme, host or port."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target


def data_uri(images: Sequence[Image.Image]) -> str:
    """An image, or the collage of several, as a PNG in a data URI; bounded to `LONG_SIDE`."""
    image = single_image(images)
    image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS, reducing_gap=None)
    image.info.clear()  # color profiles and the like, which not every server reads alike
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # three times as fast as 6, and 15 % larger
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def text_of(body: str) -> str:
    """The text in the body of an answer with status 200.

    Raises:
        Retry: it is no answer.
        Refused: the model or a filter declined.
    """
    try:
        answer = parse_json(body)
    except ValueError:
        raise Retry(f"the answer is not JSON: {one_line(body) or 'it is empty'}") from None
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        text, reason = message.get("content"), choice.get("finish_reason")
        refusal = message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        # Some proxies report errors with status 200.
        raise Retry(f"the answer holds no text: {message_in(body)}") from None
    if reason == "content_filter":
        raise Refused("the server's content filter withheld the text")
    if refusal:
        raise Refused(f"the model refuses: {one_line(str(refusal))}")
    if not text and reason == "length":
        raise Refused(
            "no text within config.descriptions.max_new_tokens: a model that reasons first needs "
            "more, or its reasoning switched off on the server"
        )
    if not isinstance(text, str):
        raise Retry(f"the answer holds no text: {one_line(body)}")
    return text


def retry_after(value: str) -> float:
    """Seconds that a server asks to wait, as a number or a date in "Retry-After"; 0 for none."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def message_in(body: str) -> str:
    """The message in the body of an error, wherever servers put it, or the body; bounded."""
    try:
        content = parse_json(body)
    except ValueError:
        content = None
    return one_line(_message_of(content) or body)


def one_line(text: str) -> str:
    """The beginning of what a server says, for a message.

    White space is collapsed first: otherwise it could push the end of a key past the bound, and the
    rest would not be recognized.
    """
    return " ".join(text.split())[:SHOWN]


def _message_of(content: object) -> str:
    for key in ("error", "message", "detail"):
        if isinstance(content, Mapping) and content.get(key):
            return _message_of(content[key]) or str(content[key])
    return content if isinstance(content, str) else ""


def model_names(body: str) -> list[str]:
    """The names in a list of models; none where it is no such list."""
    try:
        names = [model["id"] for model in parse_json(body)["data"]]
    except (ValueError, KeyError, TypeError):
        return []
    return [name for name in names if isinstance(name, str)]
