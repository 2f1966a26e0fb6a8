"""Concurrent requests to the server, in the thread of an event loop."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait

from ml_collections import ConfigDict

from captioning.engines import Identity, Request, Result, Results
from captioning.engines.openai.server import Server
from captioning.engines.openai.session import Session

# If something, such as the traceback of an error, still refers to an iterator when the interpreter
# ends, it must be closed while the thread of its event loop can still run. Later, closing it would
# wait for that thread forever.
_open_iterators: weakref.WeakSet[Results] = weakref.WeakSet()


@atexit.register
def _close_iterators() -> None:
    for results in list(_open_iterators):
        results.close()


class OpenAIEngine:
    """Describes images by requests to a server."""

    def __init__(self, identity: Identity, settings: ConfigDict, backoff: float = 1.0) -> None:
        """Create the engine without connecting to the server.

        `settings` is `config.descriptions`; `backoff`: see `Session`.
        """
        self.identity = identity
        self.server = Server(settings.openai, identity.model)
        self._settings, self._backoff = settings, backoff

    def describe(self, requests: Iterable[Request]) -> Results:
        """See `Engine.describe`.

        At most `concurrency` requests are in flight. Closing the iterator cancels them.
        """
        results = self._describe(requests)
        _open_iterators.add(results)
        return results

    def _describe(self, requests: Iterable[Request]) -> Results:
        from anyio.from_thread import start_blocking_portal

        pending: dict[Future[Result], Request] = {}
        # In its own thread the event loop receives responses and encodes images while the caller
        # writes and reads files.
        with start_blocking_portal() as portal:
            session = Session(self.server, self._settings, self._backoff)
            try:
                for request in requests:
                    pending[portal.start_task_soon(session.describe, request)] = request
                    if len(pending) >= self._settings.openai.concurrency:
                        yield from _completed(pending)
                while pending:
                    yield from _completed(pending)
            finally:
                for future in pending:
                    future.cancel()  # before its client is closed
                portal.call(session.client.close)


def _completed(pending: dict[Future[Result], Request]) -> Results:
    """Wait for a result; remove all completed requests from `pending` and yield them."""
    for future in wait(pending, return_when=FIRST_COMPLETED).done:
        yield pending.pop(future), future.result()
