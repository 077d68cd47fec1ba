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

from data_pipelines import duplicates, sandbox, shards, staged
from data_pipelines.task import Job, Task, decoded, named
from melllm_jax.errors import Fault, Mistake

TROUBLE = ".trouble"  # suffix of a file in the work folder that says what stopped a task
Place = tuple[int, int]  # rank of a split, and number of a shard


def stage(element: str) -> Iterator[tuple[int, bytes]]:
    """One task done; its records' digests."""
    task, job = decoded(element)
    with _noted(job, task.name):
        sandbox.alone(task, job)
        yield from bundles(task, job)


def bundles(task: Task, job: Job) -> Iterator[tuple[int, bytes]]:
    """The digests of a task's records, by bucket; none where nothing is to be stored of them."""
    if job.making.store == "nothing" or staged.stopped(job):
        return
    sounds = job.making.limits.duplicates == "refuse"
    rank = job.splits.index(task.split)
    yield from duplicates.bundles(staged.rows(task, job), rank, task.number, sounds)


def lost(bucket: tuple[int, Iterable[bytes]]) -> Iterator[tuple[Place, bytes]]:
    """What a bucket says is to go, by shard."""
    return duplicates.losses(bucket[1])


def reduce(shard: tuple[Place, Iterable[bytes]], job: Job) -> None:
    """What is to go from a shard, gone."""
    (rank, number), parts = shard
    with _noted(job, named(job.splits[rank], number)):
        staged.reduced(job.splits[rank], number, job, duplicates.settled(parts))


@contextlib.contextmanager
def _noted(job: Job, name: str) -> Iterator[None]:
    """What goes wrong is left in a file for whoever started the job, and ends it: not retried."""
    try:
        yield
    except (Mistake, Fault) as error:
        work, kind = epath.Path(job.work), Mistake if isinstance(error, Mistake) else Fault
        said = json.dumps([kind.__name__, str(error)]).encode()
        shards.write(work / (name + TROUBLE), said)
        shards.write(work / staged.STOP, b"a task has failed")


def inline(tasks: list[Task], job: Job, tick: Callable[[int], None]) -> None:
    """The steps of the pipeline, one after the other; nothing outlives a decoder that crashes."""
    before = 0
    buckets: dict[int, list[bytes]] = defaultdict(list)
    lost: dict[Place, list[bytes]] = defaultdict(list)
    for task in tasks:
        seen = itertools.count(before)
        staged.staged(task, job, skip={}, tick=lambda line, seen=seen: tick(next(seen)))
        before += task.lines
        tick(before)
        for bucket, part in bundles(task, job):
            buckets[bucket].append(part)
    for parts in buckets.values():
        for place, part in duplicates.losses(parts):
            lost[place].append(part)
    for place, parts in lost.items():
        reduce((place, parts), job)
