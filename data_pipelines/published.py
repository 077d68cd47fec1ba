"""What all tasks have staged to a folder of shards, whose index is written last.

A file is linked to its final name, or copied where links are unknown, and the staged one stays
until all is done: publishing can be cut off anywhere and done again.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import contextlib
import json
import os
import re
from typing import Any

from etils import epath
import numpy as np

from data_pipelines import duplicates, shards, staged
from data_pipelines.mel import Moments
from data_pipelines.tally import Tally, columns, spread
from data_pipelines.task import Job, Task

SHARD = re.compile(r".+-\d{5,}" + re.escape(shards.SUFFIX))


def published(out: epath.Path, tasks: Sequence[Task], job: Job) -> shards.Index:
    """Moves what is staged into `out` and writes its index."""
    _clear(out)
    splits: dict[str, tuple[shards.Shard, ...]] = {}
    facts, tallies = {}, []
    for split in job.splits:
        mine = [task for task in tasks if task.split == split]
        tally, found, refused = Tally(), list[shards.Shard](), Counter[str]()
        described = (_Part(task, job).shard for task in mine)
        count = sum(shard["count"] for shard in described if shard)
        parts = _linked(mine, job, out, tally, found, refused)
        shards.write_columns(out, split, parts, count)
        splits[split], facts[split] = tuple(found), tally.facts(dict(sorted(refused.items())))
        tallies.append(tally)
    write_rejects(out, tasks, job)
    making, store = job.making, job.making.store
    index = shards.Index(
        mel=making.mel if store == "mel" else None,
        splits=dict(sorted(splits.items())),
        facts=facts,
        sound=store if store == "opus" or store == "original" else "flac",
        tokenizer=job.digest or None,
        statistics=statistics(tasks, job),
        loudness=spread(tallies),
    )
    shards.write_index(out, index)
    return index


def statistics(tasks: Sequence[Task], job: Job) -> shards.Statistics:
    """Of the mel of all staged sound to train on, or of all splits where none is named for that.

    Also of records that were taken out since because they repeat others: these are constants to
    centre the bands by, and counting them out would mean to hear them again.
    """
    train = [task for task in tasks if duplicates.trains(task.split)]
    total = Moments()
    for task in train or tasks:
        moments = _sidecar(task, job)["moments"]
        total += Moments(moments["count"], tuple(moments["mean"]), tuple(moments["squares"]))
    return shards.Statistics(job.making.mel.kind, job.making.mel.m, *total.constants())


def rejects(tasks: Sequence[Task], job: Job) -> Iterator[dict[str, str]]:
    """What is left out so far, in order, as rejects.jsonl has it."""
    for task in tasks:
        for tree in (staged.sidecar(task, job), staged.lost(task, job)):
            for reject in tree["rejects"] if tree else ():
                yield {"split": task.split} | reject


def write_rejects(out: epath.Path, tasks: Sequence[Task], job: Job) -> None:
    """rejects.jsonl of what is staged so far."""
    lines = (json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects(tasks, job))
    # Half of a surrogate pair is written as JSON spells it.
    shards.write(out / shards.REJECTS, "".join(lines).encode(errors="backslashreplace"))


class _Part:
    """What one task has left, less the records that repeat others."""

    def __init__(self, task: Task, job: Job) -> None:
        self._task, self._job = task, job
        tree, lost = _sidecar(task, job), staged.lost(task, job)
        kept = lost or {"rows": [], "rejects": [], "shard": tree["shard"]}
        self.names, self.shard = tree["names"], kept["shard"]
        self.rejects = tree["rejects"] + kept["rejects"]
        self._gone = kept["rows"]
        suffix = shards.SUFFIX if lost is None else staged.KEPT
        self.path = epath.Path(job.work) / (task.name + suffix)

    def rows(self) -> np.ndarray:
        return np.delete(staged.rows(self._task, self._job), self._gone)


def _linked(
    tasks: Sequence[Task],
    job: Job,
    out: epath.Path,
    tally: Tally,
    found: list[shards.Shard],
    refused: Counter[str],
) -> Iterator[np.ndarray]:
    """Gives each shard of a split its final name and counts it: its columns."""
    for task in tasks:
        part = _Part(task, job)
        rows = part.rows()
        tally.add(rows, part.names)
        refused.update(reject["reason"] for reject in part.rejects)
        if part.shard:
            name = shards.name(task.split, len(found))
            _link(part.path, out / name)
            found.append(shards.Shard(**part.shard | {"name": name}))
        yield columns(rows)


def _sidecar(task: Task, job: Job) -> dict[str, Any]:
    tree = staged.sidecar(task, job)
    assert tree is not None, f"{task.name} is not staged"
    return tree


def _clear(out: epath.Path) -> None:
    """Removes what an interrupted publishing, of other options perhaps, has left."""
    for path in out.iterdir():
        if SHARD.fullmatch(path.name) or path.name.endswith(shards.COLUMNS):
            path.unlink()


def _link(source: epath.Path, final: epath.Path) -> None:
    if "://" not in os.fspath(final):
        with contextlib.suppress(OSError):
            os.link(os.fspath(source), os.fspath(final))
            return
    source.copy(final, overwrite=True)
