"""One worker: open pictures ahead of the engine, ask it, and write what it says."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

from PIL import Image
from tqdm import tqdm

from captioning.engines import Engine, Failure, Request
from captioning.shards import ShardWriter
from captioning.tasks import Task
from lattec_jax.data.preprocess import UnreadablePicture, open_picture
from lattec_jax.errors import EngineError

READERS = 4  # threads that decode
AHEAD = 16  # requests whose pictures are open before the engine wants them
HOPELESS = 20  # failures of the engine without one success after which the worker gives up


@dataclasses.dataclass
class Tally:
    """What a worker did, in images."""

    written: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # image -> reason


def work(engine: Engine, tasks: Sequence[Task], writer: ShardWriter, progress: tqdm) -> Tally:
    """Describe every task, in whatever order the engine answers. Each answer is on disk at once.

    A picture that cannot be read, and whatever else fails for one image alone, is recorded with its
    reason; the rest goes on, and the next run takes what failed again.

    Raises:
        EngineError: nothing works, or the engine says so.
        DataError: the file cannot be written.
    """
    tally = Tally()
    waiting: dict[tuple[str, str], Task] = {}
    turn = threading.Lock()  # an engine may pull requests in a thread of its own

    def record(task: Task, answer: str | Failure) -> None:
        with turn:
            if isinstance(answer, Failure):
                reason = " ".join(answer.reason.split())
                tally.failed[task.image] = reason
                writer.append(task.record(engine.identity, error=reason))
            else:
                tally.written += 1
                writer.append(task.record(engine.identity, text=" ".join(answer.split())))
            progress.update()

    def requests() -> Iterator[Request]:
        with closing(_opened(tasks)) as opened:
            for task, pictures in opened:
                if isinstance(pictures, Failure):
                    record(task, pictures)
                    continue
                waiting[task.image, task.kind] = task
                yield Request(task.image, task.kind, task.prompt, pictures)

    engine_failures = 0
    with closing(requests()) as wanted, closing(engine.describe(wanted)) as answers:
        for request, answer in answers:
            record(waiting.pop((request.image_id, request.kind)), answer)
            engine_failures += isinstance(answer, Failure)
            if engine_failures >= HOPELESS and not tally.written:
                raise EngineError(
                    f"engine {engine.identity.engine}: the first {engine_failures} descriptions "
                    f"all failed, the last with: {' '.join(answer.reason.split())}"
                )
    if waiting:
        raise RuntimeError(
            f"engine {engine.identity.engine} left {len(waiting)} requests unanswered, the first "
            f"for {next(iter(waiting))[0]!r}"
        )
    return tally


Pictures = tuple[Image.Image, ...]


def _opened(tasks: Sequence[Task]) -> Iterator[tuple[Task, Pictures | Failure]]:
    """The tasks in order, with their pictures open, or why they cannot be."""
    pool = ThreadPoolExecutor(READERS)
    ahead: deque[tuple[Task, Future[Pictures | Failure]]] = deque()
    try:
        for task in tasks:
            ahead.append((task, pool.submit(_open, task)))
            if len(ahead) > AHEAD:
                first, pictures = ahead.popleft()
                yield first, pictures.result()
        for first, pictures in ahead:
            yield first, pictures.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _open(task: Task) -> Pictures | Failure:
    try:
        return tuple(open_picture(path) for path in task.paths)
    except UnreadablePicture as error:
        return Failure(str(error))
