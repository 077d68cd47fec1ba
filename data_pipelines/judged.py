"""A job of preparing from its start to the verdict on what it left out."""

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

from data_pipelines import duplicates, sandbox, shards, staged
from data_pipelines.published import rejects, write_rejects
from data_pipelines.steps import TROUBLE
from data_pipelines.task import Job, Task
from melllm_jax.errors import Fault, Mistake

SEEN = 1.0  # seconds between looks at what is done
Tick = Callable[[int, int], None]  # utterances done, of how many
Launch = Callable[[list[Task], Job, Callable[[int], None]], None]


def ran(
    job: Job, launch: Launch, *, out: epath.Path, tasks: list[Task], bad: float, tick: Tick
) -> None:
    """All tasks done, and found good enough; else what is left out is listed and it raises."""
    work = epath.Path(job.work)
    work.mkdir(parents=True, exist_ok=True)
    for path in work.iterdir():
        if path.name == staged.STOP or path.name.endswith((TROUBLE, staged.LOST, sandbox.AT)):
            path.unlink()
    total = sum(task.lines for task in tasks)
    try:
        launch(tasks, job, lambda done: tick(done, total))
    finally:
        _raise_trouble(work)
    undone = [task.name for task in tasks if staged.sidecar(task, job) is None]
    if undone and not staged.stopped(job):
        raise Fault(
            f"the runner left {len(undone)} of {len(tasks)} tasks undone, {undone[0]} first"
        )
    counts = Counter(reject["reason"] for reject in rejects(tasks, job))
    for reason in duplicates.REASONS:
        del counts[reason]
    if counts.total() > job.allowed:
        write_rejects(out, tasks, job)
        named = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        least = " or more" if (work / staged.STOP).exists() else ""
        share = f"{counts.total()}{least} of {total} utterances ({counts.total() / total:.1%})"
        where = out / shards.REJECTS
        raise Mistake(f"bad={bad}: {share} are unusable: {named}. Each stands in {where}")
    for split in job.splits:
        mine = [task for task in tasks if task.split == split]
        if not any(tree and tree["count"] for tree in (staged.sidecar(t, job) for t in mine)):
            write_rejects(out, tasks, job)
            lines = sum(task.lines for task in mine)
            raise Mistake(f"split={split}: none of its {lines} utterances is usable")


def _raise_trouble(work: epath.Path) -> None:
    for path in sorted(work.iterdir()):
        if path.name.endswith(TROUBLE):
            kind, message = json.loads(path.read_bytes())
            raise {"Mistake": Mistake, "Fault": Fault}[kind](message)


@contextlib.contextmanager
def watched(tasks: list[Task], job: Job, tick: Callable[[int], None]) -> Iterator[None]:
    """Looks at what is done from a thread of its own, tells `tick`, and stops a job gone bad."""
    ended = threading.Event()
    lines = {task.name: task.lines for task in tasks}

    def watch() -> None:
        refused: dict[str, int] = {}  # by task that is done
        took = 0.0
        while not ended.wait(max(SEEN, 10 * took)):  # a bucket of many files takes long to list
            began, begun = time.monotonic(), 0
            for path in epath.Path(job.work).iterdir():
                name = path.name.removesuffix(staged.SIDECAR)
                if name in lines and name != path.name and name not in refused:
                    with contextlib.suppress(OSError, ValueError):
                        refused[name] = len(json.loads(path.read_bytes())["rejects"])
                elif path.name.endswith(sandbox.AT):
                    with contextlib.suppress(OSError, struct.error):
                        begun += sandbox.at(pathlib.Path(os.fspath(path)))
            took = time.monotonic() - began
            tick(sum(lines[name] for name in refused) + begun)
            if sum(refused.values()) > max(job.allowed, staged.FEWEST):
                shards.write(epath.Path(job.work) / staged.STOP, b"too many are unusable")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    tick(sum(lines.values()))
