"""Runs a preparing job, watches its progress, and fails it if too many utterances are unusable."""

from collections import Counter
from collections.abc import Callable, Iterator
import contextlib
import json
import os
import pathlib
import struct
import threading
import time

from etils import epath

from data_pipelines.corpora import shard_index
from data_pipelines.prepare import crash_isolation, deduplicate, shard_task
from data_pipelines.prepare.beam_steps import ERROR_SUFFIX
from data_pipelines.prepare.publish import read_rejects, write_rejects
from data_pipelines.prepare.tasks import Job, Task
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake

POLL_SECONDS = 1.0  # between looks at what is done
ProgressCallback = Callable[[int, int], None]  # given the utterances done, and all
TaskRunner = Callable[[list[Task], Job, Callable[[int], None]], None]


def run_job(
    job: Job,
    launch: TaskRunner,
    *,
    out: epath.Path,
    tasks: list[Task],
    bad: float,
    progress: ProgressCallback,
) -> None:
    """Does all tasks and checks that few enough utterances were rejected.

    launch: runs the tasks; progress: called with the utterances done, and all. Raises Mistake where
    rejects exceed the share `bad`, or a split has no usable utterance, after writing rejects.jsonl
    to `out`; Fault where the runner leaves a task undone; and what a task raised.
    """
    work = epath.Path(job.work)
    work.mkdir(parents=True, exist_ok=True)
    for path in work.iterdir():
        if path.name == shard_task.STOP or path.name.endswith(
            (ERROR_SUFFIX, shard_task.REPEATS, crash_isolation.MARK_SUFFIX)
        ):
            path.unlink()
    total = sum(task.lines for task in tasks)
    try:
        launch(tasks, job, lambda done: progress(done, total))
    finally:
        _raise_task_error(work)
    undone = [task.name for task in tasks if shard_task.read_sidecar(task, job) is None]
    if undone and not shard_task.is_stopped(job):
        raise Fault(
            f"the runner left {len(undone)} of {len(tasks)} tasks undone, {undone[0]} first"
        )
    counts = Counter(reject["reason"] for reject in read_rejects(tasks, job))
    for reason in deduplicate.REASONS:
        del counts[reason]
    if counts.total() > job.max_rejects:
        write_rejects(out, tasks, job)
        named = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        least = " or more" if (work / shard_task.STOP).exists() else ""
        share = f"{counts.total()}{least} of {total} utterances ({counts.total() / total:.1%})"
        where = out / shard_index.REJECTS
        raise Mistake(f"bad={bad}: {share} are unusable: {named}. Each stands in {where}")
    for split in job.splits:
        mine = [task for task in tasks if task.split == split]
        if not any(
            tree and tree["count"] for tree in (shard_task.read_sidecar(t, job) for t in mine)
        ):
            write_rejects(out, tasks, job)
            lines = sum(task.lines for task in mine)
            raise Mistake(f"split={split}: none of its {lines} utterances is usable")


def _raise_task_error(work: epath.Path) -> None:
    for path in sorted(work.iterdir()):
        if path.name.endswith(ERROR_SUFFIX):
            kind, message = json.loads(path.read_bytes())
            raise {"Mistake": Mistake, "Fault": Fault}[kind](message)


@contextlib.contextmanager
def watch_progress(tasks: list[Task], job: Job, progress: Callable[[int], None]) -> Iterator[None]:
    """Polls what is done in a thread, calls `progress`, and stops a job with too many rejects."""
    ended = threading.Event()
    lines = {task.name: task.lines for task in tasks}

    def watch() -> None:
        rejected: dict[str, int] = {}  # by task that is done
        took = 0.0
        while not ended.wait(max(POLL_SECONDS, 10 * took)):  # a large bucket is slow to list
            began, begun = time.monotonic(), 0
            for path in epath.Path(job.work).iterdir():
                name = path.name.removesuffix(shard_task.SIDECAR)
                if name in lines and name != path.name and name not in rejected:
                    with contextlib.suppress(OSError, ValueError):
                        rejected[name] = len(json.loads(path.read_bytes())["rejects"])
                elif path.name.endswith(crash_isolation.MARK_SUFFIX):
                    with contextlib.suppress(OSError, struct.error):
                        begun += crash_isolation.read_mark(pathlib.Path(os.fspath(path)))
            took = time.monotonic() - began
            progress(sum(lines[name] for name in rejected) + begun)
            if sum(rejected.values()) > max(job.max_rejects, shard_task.MIN_REJECTS):
                files.write_bytes(epath.Path(job.work) / shard_task.STOP, b"too many are unusable")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    progress(sum(lines.values()))
