"""The steps of preparing as functions of small elements, run by Beam or one after another.

A step that fails writes its error to a file, for the process that started the job, and stops the
job instead of raising: a retry would fail again, and a runner would bury the message in a page of
its own.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
import contextlib
import itertools
import json

from etils import epath

from data_pipelines.prepare import crash_isolation, deduplicate, shard_task
from data_pipelines.prepare.tasks import Job, Task, decode_task, shard_stem
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake

ERROR_SUFFIX = ".trouble"  # of a file in the work folder with the error that stopped a task
ShardKey = tuple[int, int]  # rank of a split, and number of a shard


def stage(element: str) -> Iterator[tuple[int, bytes]]:
    """Does one task in a process of its own and yields its records' digests by bucket."""
    task, job = decode_task(element)
    with _report_errors(job, task.name):
        crash_isolation.run_isolated(task, job)
        yield from bundles(task, job)


def bundles(task: Task, job: Job) -> Iterator[tuple[int, bytes]]:
    """The digests of a task's records by bucket; none where no records are stored."""
    if job.record_config.store == "nothing" or shard_task.is_stopped(job):
        return
    sounds = job.record_config.limits.duplicates == "refuse"
    rank = job.splits.index(task.split)
    yield from deduplicate.bundles(shard_task.read_rows(task, job), rank, task.number, sounds)


def find_repeats(bucket: tuple[int, Iterable[bytes]]) -> Iterator[tuple[ShardKey, bytes]]:
    """The records of a bucket that repeat others, by shard."""
    return deduplicate.find_repeats(bucket[1])


def drop_repeats(shard: tuple[ShardKey, Iterable[bytes]], job: Job) -> None:
    """Writes a shard once more without the records that repeat others."""
    (rank, number), parts = shard
    with _report_errors(job, shard_stem(job.splits[rank], number)):
        shard_task.write_without_repeats(
            job.splits[rank], number, job, deduplicate.merge_repeats(parts)
        )


@contextlib.contextmanager
def _report_errors(job: Job, name: str) -> Iterator[None]:
    """Writes an error to a file for the process that started the job, and stops the job."""
    try:
        yield
    except (Mistake, Fault) as error:
        work, kind = epath.Path(job.work), Mistake if isinstance(error, Mistake) else Fault
        content = json.dumps([kind.__name__, str(error)]).encode()
        files.write_bytes(work / (name + ERROR_SUFFIX), content)
        files.write_bytes(work / shard_task.STOP, b"a task has failed")


def run_inline(tasks: list[Task], job: Job, progress: Callable[[int], None]) -> None:
    """Runs the steps one after another in this process, which a crashing decoder would end."""
    before = 0
    buckets: dict[int, list[bytes]] = defaultdict(list)
    repeats: dict[ShardKey, list[bytes]] = defaultdict(list)
    for task in tasks:
        seen = itertools.count(before)
        count_line = lambda line, seen=seen: progress(next(seen))
        shard_task.stage_task(task, job, skip={}, progress=count_line)
        before += task.lines
        progress(before)
        for bucket, part in bundles(task, job):
            buckets[bucket].append(part)
    for parts in buckets.values():
        for shard, part in deduplicate.find_repeats(parts):
            repeats[shard].append(part)
    for shard, parts in repeats.items():
        drop_repeats((shard, parts), job)
