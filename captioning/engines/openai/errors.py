"""Exceptions of a request to the server, below the errors that reach the user."""

from __future__ import annotations


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
