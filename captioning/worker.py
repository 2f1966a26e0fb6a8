"""Describe a shard: decode images ahead of the engine, and store each result at once."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from PIL import Image

from captioning.engines import Engine, Failure, Request, Result, clean_result
from captioning.shards import Shard, ShardWriter, read_records, shard_path
from captioning.tasks import Task
from lattec_jax.data.datasets.error_messages import list_lines
from lattec_jax.data.images.preprocess import UnreadableImage, open_image
from lattec_jax.data.prefetch import prefetch
from lattec_jax.runtime.errors import DataError, EngineError
from lattec_jax.runtime.progress import ProgressBar, progress_bar

DECODE_THREADS = 4
PREFETCH = 16  # requests whose images are decoded before the engine asks for them
MAX_INITIAL_FAILURES = 20  # the engine's, without one success: it does not work at all


@dataclasses.dataclass
class WorkerStats:
    """Counts of images."""

    written: int = 0
    reused: int = 0  # had a description already
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # image -> reason


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """The tasks of one kind in one shard."""

    merged_path: Path  # of the file that all shards are merged into
    shard: Shard
    num_tasks: int
    pending: tuple[Task, ...]  # tasks without a description

    @classmethod
    def make(cls, merged_path: Path, tasks: Sequence[Task], shard: Shard) -> ShardPlan:
        """Select a shard of all tasks; a description by any worker counts as done."""
        found = read_records(merged_path)
        selected = tasks[shard.index :: shard.count]
        pending = [task for task in selected if task.key not in found or found[task.key].error]
        return cls(merged_path, shard, len(selected), tuple(pending))


def describe_shard(
    plan: ShardPlan, load: Callable[[], Engine], title: str, goal: str
) -> WorkerStats:
    """Write the descriptions that a shard lacks.

    Args:
        load: returns the engine; called if there is a pending task.
        title: of the progress bar.
        goal: completes the error "none of the N ..." if every task failed.
    """
    reused = plan.num_tasks - len(plan.pending)
    if not plan.pending:
        return WorkerStats(reused=reused)
    engine = load()
    with (
        ShardWriter(shard_path(plan.merged_path, plan.shard)) as writer,
        progress_bar(total=plan.num_tasks, initial=reused, desc=title, unit="image") as bar,
    ):
        stats = describe_tasks(engine, plan.pending, writer, bar)
    if len(stats.failed) == plan.num_tasks:
        image, reason = next(iter(stats.failed.items()))
        raise DataError(
            f"none of the {plan.num_tasks} {goal}, the first, of {image!r}, because: {reason}"
        )
    return dataclasses.replace(stats, reused=reused)


def list_failures(failed: Mapping[str, str]) -> str:
    """Return the first failures, one per line, and the number of further ones."""
    return list_lines([f"failed: {image}: {reason}" for image, reason in failed.items()], "  ")


def describe_tasks(
    engine: Engine, tasks: Sequence[Task], writer: ShardWriter, progress: ProgressBar
) -> WorkerStats:
    """Describe every task, in the order in which the engine returns results.

    If an image cannot be read, or its request fails, the reason is recorded and the next run tries
    again. If all of the engine's first results are failures, it is an EngineError.
    """
    stats = WorkerStats()
    in_flight: dict[tuple[str, str], Task] = {}
    lock = threading.Lock()  # an engine may pull requests in its own thread

    def record(task: Task, result: Result) -> None:
        with lock:
            if isinstance(result, Failure):
                stats.failed[task.image] = result.reason
                writer.append(task.record(engine.identity, error=result.reason))
            else:
                stats.written += 1
                writer.append(task.record(engine.identity, text=result))
            progress.update()

    def requests() -> Generator[Request, None, None]:
        opened = prefetch(_open, tasks, threads=DECODE_THREADS, ahead=PREFETCH)
        with closing(opened):
            for task, images in zip(tasks, opened, strict=True):
                if isinstance(images, Failure):
                    record(task, clean_result(images))
                    continue
                in_flight[task.image, task.kind] = task
                yield Request(task.image, task.kind, task.prompt, images)

    engine_failures = 0
    with closing(requests()) as source, closing(engine.describe(source)) as results:
        for request, raw_result in results:
            result = clean_result(raw_result)
            record(in_flight.pop((request.image_id, request.kind)), result)
            if not isinstance(result, Failure):
                continue
            engine_failures += 1
            if engine_failures >= MAX_INITIAL_FAILURES and not stats.written:
                raise EngineError(
                    f"engine {engine.identity.engine}: the first {engine_failures} descriptions "
                    f"all failed, the last with: {result.reason}"
                )
    if in_flight:
        raise RuntimeError(
            f"engine {engine.identity.engine} returned no result for {len(in_flight)} requests, "
            f"the first for {next(iter(in_flight))[0]!r}"
        )
    return stats


def _open(task: Task) -> tuple[Image.Image, ...] | Failure:
    single = len(task.paths) == 1
    try:
        return tuple(open_image(path) for path in task.paths)
    except UnreadableImage as error:
        # The record of a single image is found by its content, so it may be shown for another file
        # with the same content: its reason must not name this file.
        return Failure(f"cannot read the image: {error.reason}" if single else str(error))
