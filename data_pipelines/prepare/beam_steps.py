"""The steps of preparing as functions of small elements, for a pipeline or one after the other.

A step that fails leaves a file that says so for whoever started the job, and ends it: what is wrong
would be wrong again, and an exception would come back from a runner in a page of its own.
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

ERROR_SUFFIX = ".trouble"  # suffix of a file in the work folder that says what stopped a task
ShardKey = tuple[int, int]  # rank of a split, and number of a shard


def stage(element: str) -> Iterator[tuple[int, bytes]]:
    """One task done; its records' digests."""
    task, job = decode_task(element)
    with _report_errors(job, task.name):
        crash_isolation.run_isolated(task, job)
        yield from bundles(task, job)


def bundles(task: Task, job: Job) -> Iterator[tuple[int, bytes]]:
    """The digests of a task's records, by bucket; none where nothing is to be stored of them."""
    if job.record_config.store == "nothing" or shard_task.is_stopped(job):
        return
    sounds = job.record_config.limits.duplicates == "refuse"
    rank = job.splits.index(task.split)
    yield from deduplicate.bundles(shard_task.read_rows(task, job), rank, task.number, sounds)


def find_repeats(bucket: tuple[int, Iterable[bytes]]) -> Iterator[tuple[ShardKey, bytes]]:
    """What a bucket says is to go, by shard."""
    return deduplicate.find_repeats(bucket[1])


def drop_repeats(shard: tuple[ShardKey, Iterable[bytes]], job: Job) -> None:
    """What is to go from a shard, gone."""
    (rank, number), parts = shard
    with _report_errors(job, shard_stem(job.splits[rank], number)):
        shard_task.write_without_repeats(
            job.splits[rank], number, job, deduplicate.merge_repeats(parts)
        )


@contextlib.contextmanager
def _report_errors(job: Job, name: str) -> Iterator[None]:
    """What goes wrong is left in a file for whoever started the job, and ends it: not retried."""
    try:
        yield
    except (Mistake, Fault) as error:
        work, kind = epath.Path(job.work), Mistake if isinstance(error, Mistake) else Fault
        said = json.dumps([kind.__name__, str(error)]).encode()
        files.write_bytes(work / (name + ERROR_SUFFIX), said)
        files.write_bytes(work / shard_task.STOP, b"a task has failed")


def run_inline(tasks: list[Task], job: Job, progress: Callable[[int], None]) -> None:
    """The steps of the pipeline, one after the other; nothing outlives a decoder that crashes."""
    before = 0
    buckets: dict[int, list[bytes]] = defaultdict(list)
    lost: dict[ShardKey, list[bytes]] = defaultdict(list)
    for task in tasks:
        seen = itertools.count(before)
        count_line = lambda line, seen=seen: progress(next(seen))
        shard_task.stage_task(task, job, skip={}, progress=count_line)
        before += task.lines
        progress(before)
        for bucket, part in bundles(task, job):
            buckets[bucket].append(part)
    for parts in buckets.values():
        for place, part in deduplicate.find_repeats(parts):
            lost[place].append(part)
    for place, parts in lost.items():
        drop_repeats((place, parts), job)
