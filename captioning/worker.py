"""One worker: open images ahead of the engine, ask it, and write what it says."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from captioning.engines import Engine, Failure, Request, checked
from captioning.shards import Shard, ShardWriter, answered, recorded, shard_path
from captioning.tasks import Task
from lattec_jax.data.images.preprocess import UnreadableImage, open_image
from lattec_jax.runtime.errors import DataError, EngineError

READERS = 4  # threads that decode
AHEAD = 16  # requests whose images are open before the engine wants them
HOPELESS = 20  # failures of the engine without one success after which the worker gives up


@dataclasses.dataclass
class WorkerStats:
    """What a worker did, in images."""

    written: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # image -> reason


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """A worker's part of one kind."""

    path: Path  # of the file that all parts are merged into
    shard: Shard
    tasks: tuple[Task, ...]
    wanted: tuple[Task, ...]  # those of them that have no answer

    @classmethod
    def of(cls, path: Path, tasks: Sequence[Task], shard: Shard) -> ShardPlan:
        """Of all tasks of a kind, those of a shard; what anyone has answered is not wanted."""
        done = answered(recorded(path))
        mine = tuple(tasks[shard.index :: shard.count])
        return cls(path, shard, mine, tuple(task for task in mine if task.key not in done))

    @property
    def kept(self) -> int:
        """Tasks that were answered before."""
        return len(self.tasks) - len(self.wanted)


def work_through(part: ShardPlan, engine: Engine, title: str, what: str) -> WorkerStats:
    """Get the answers that a part wants.

    Args:
        part: with something wanted.
        engine: that is asked.
        title: of the progress bar.
        what: was done with all of them, for the message if it was done with none.

    Raises:
        EngineError: as `work`.
        DataError: as `work`, or not a single task of the part has an answer.
    """
    with (
        ShardWriter(shard_path(part.path, part.shard)) as writer,
        tqdm(total=len(part.tasks), initial=part.kept, desc=title, unit="image") as bar,
    ):
        tally = work(engine, part.wanted, writer, bar)
    if len(tally.failed) == len(part.tasks):
        image, reason = next(iter(tally.failed.items()))
        raise DataError(
            f"none of the {len(part.tasks)} {what}, the first, of {image!r}, because: {reason}"
        )
    return tally


def work(engine: Engine, tasks: Sequence[Task], writer: ShardWriter, progress: tqdm) -> WorkerStats:
    """Describe every task, in whatever order the engine answers. Each answer is on disk at once.

    An image that cannot be read, and whatever else fails for one image alone, is recorded with its
    reason; the rest goes on, and the next run takes what failed again.

    Raises:
        EngineError: nothing works, or the engine says so.
        DataError: the file cannot be written.
    """
    tally = WorkerStats()
    waiting: dict[tuple[str, str], Task] = {}
    turn = threading.Lock()  # an engine may pull requests in a thread of its own

    def record(task: Task, answer: str | Failure) -> None:
        with turn:
            if isinstance(answer, Failure):
                tally.failed[task.image] = answer.reason
                writer.append(task.record(engine.identity, error=answer.reason))
            else:
                tally.written += 1
                writer.append(task.record(engine.identity, text=answer))
            progress.update()

    def requests() -> Iterator[Request]:
        with closing(_opened(tasks)) as opened:
            for task, images in opened:
                if isinstance(images, Failure):
                    record(task, checked(images))
                    continue
                waiting[task.image, task.kind] = task
                yield Request(task.image, task.kind, task.prompt, images)

    engine_failures = 0
    with closing(requests()) as wanted, closing(engine.describe(wanted)) as answers:
        for request, said in answers:
            answer = checked(said)
            record(waiting.pop((request.image_id, request.kind)), answer)
            engine_failures += isinstance(answer, Failure)
            if engine_failures >= HOPELESS and not tally.written:
                raise EngineError(
                    f"engine {engine.identity.engine}: the first {engine_failures} descriptions "
                    f"all failed, the last with: {answer.reason}"
                )
    if waiting:
        raise RuntimeError(
            f"engine {engine.identity.engine} left {len(waiting)} requests unanswered, the first "
            f"for {next(iter(waiting))[0]!r}"
        )
    return tally


Images = tuple[Image.Image, ...]


def _opened(tasks: Sequence[Task]) -> Iterator[tuple[Task, Images | Failure]]:
    """The tasks in order, with their images open, or why they cannot be."""
    pool = ThreadPoolExecutor(READERS)
    ahead: deque[tuple[Task, Future[Images | Failure]]] = deque()
    try:
        for task in tasks:
            ahead.append((task, pool.submit(_open, task)))
            if len(ahead) > AHEAD:
                first, images = ahead.popleft()
                yield first, images.result()
        for first, images in ahead:
            yield first, images.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _open(task: Task) -> Images | Failure:
    single = len(task.paths) == 1
    try:
        return tuple(open_image(path) for path in task.paths)
    except UnreadableImage as error:
        # A single image is named beside its failure. Damaged files may be alike, and then have one
        # record: it must not name the other file.
        return Failure(f"cannot read the image: {error.reason}" if single else str(error))
