"""Publishes what all tasks have staged as a folder of shards, whose index is written last.

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

from data_pipelines.audio.log_mel import Moments
from data_pipelines.corpora import shard_index, shard_writer
from data_pipelines.prepare import deduplicate, shard_task
from data_pipelines.prepare.record_statistics import SplitTotals, columns, loudness_by_source
from data_pipelines.prepare.tasks import Job, Task
from melllm_jax import files

SHARD_NAME = re.compile(r".+-\d{5,}" + re.escape(shard_index.SHARD_SUFFIX))


def publish_shards(out: epath.Path, tasks: Sequence[Task], job: Job) -> shard_index.ShardIndex:
    """Links or copies the staged shards into `out` and writes the index, which it returns."""
    _clear(out)
    splits: dict[str, tuple[shard_index.Shard, ...]] = {}
    facts, tallies = {}, []
    for split in job.splits:
        mine = [task for task in tasks if task.split == split]
        tally, found, refused = SplitTotals(), list[shard_index.Shard](), Counter[str]()
        described = (_StagedShard(task, job).shard for task in mine)
        count = sum(shard["count"] for shard in described if shard)
        parts = _link_shards(mine, job, out, tally, found, refused)
        shard_writer.write_columns(out, split, parts, count)
        splits[split], facts[split] = tuple(found), tally.summary(dict(sorted(refused.items())))
        tallies.append(tally)
    write_rejects(out, tasks, job)
    record_config, store = job.record_config, job.record_config.store
    index = shard_index.ShardIndex(
        mel=record_config.mel if store == "mel" else None,
        splits=dict(sorted(splits.items())),
        facts=facts,
        sound=store if store == "opus" or store == "original" else "flac",
        tokenizer=job.digest or None,
        statistics=staged_mel_statistics(tasks, job),
        loudness=loudness_by_source(tallies),
    )
    shard_index.write_index(out, index)
    return index


def staged_mel_statistics(tasks: Sequence[Task], job: Job) -> shard_index.MelStatistics:
    """Mel statistics over the staged train splits, or over all splits where none is named so.

    Records that were removed later, because they repeat others, are included: the statistics only
    centre the bands, and to leave those out would mean to decode them again.
    """
    train = [task for task in tasks if deduplicate.is_train_split(task.split)]
    total = Moments()
    for task in train or tasks:
        moments = _sidecar(task, job)["moments"]
        total += Moments(moments["count"], tuple(moments["mean"]), tuple(moments["squares"]))
    mel = job.record_config.mel
    return shard_index.MelStatistics(mel.kind, mel.m, *total.constants())


def read_rejects(tasks: Sequence[Task], job: Job) -> Iterator[dict[str, str]]:
    """The utterances rejected so far, in order, as lines of rejects.jsonl."""
    for task in tasks:
        for tree in (shard_task.read_sidecar(task, job), shard_task.read_repeats(task, job)):
            for reject in tree["rejects"] if tree else ():
                yield {"split": task.split} | reject


def write_rejects(out: epath.Path, tasks: Sequence[Task], job: Job) -> None:
    """Writes rejects.jsonl for what is staged so far."""
    lines = (json.dumps(reject, ensure_ascii=False) + "\n" for reject in read_rejects(tasks, job))
    # Half of a surrogate pair is written as JSON spells it.
    files.write_bytes(out / shard_index.REJECTS, "".join(lines).encode(errors="backslashreplace"))


class _StagedShard:
    """The staged shard of one task, without the records that repeat others."""

    def __init__(self, task: Task, job: Job) -> None:
        self._task, self._job = task, job
        tree, lost = _sidecar(task, job), shard_task.read_repeats(task, job)
        kept = lost or {"rows": [], "rejects": [], "shard": tree["shard"]}
        self.names, self.shard = tree["names"], kept["shard"]
        self.rejects = tree["rejects"] + kept["rejects"]
        self._gone = kept["rows"]
        suffix = shard_index.SHARD_SUFFIX if lost is None else shard_task.DEDUPLICATED
        self.path = epath.Path(job.work) / (task.name + suffix)

    def rows(self) -> np.ndarray:
        return np.delete(shard_task.read_rows(self._task, self._job), self._gone)


def _link_shards(
    tasks: Sequence[Task],
    job: Job,
    out: epath.Path,
    tally: SplitTotals,
    found: list[shard_index.Shard],
    refused: Counter[str],
) -> Iterator[np.ndarray]:
    """Links each shard of a split to its final name, adds it to the totals; yields its columns."""
    for task in tasks:
        part = _StagedShard(task, job)
        rows = part.rows()
        tally.add(rows, part.names)
        refused.update(reject["reason"] for reject in part.rejects)
        if part.shard:
            name = shard_index.shard_name(task.split, len(found))
            _link(part.path, out / name)
            found.append(shard_index.Shard(**part.shard | {"name": name}))
        yield columns(rows)


def _sidecar(task: Task, job: Job) -> dict[str, Any]:
    tree = shard_task.read_sidecar(task, job)
    assert tree is not None, f"{task.name} is not staged"
    return tree


def _clear(out: epath.Path) -> None:
    """Removes files of an interrupted run of publishing, perhaps with other options."""
    for path in out.iterdir():
        if SHARD_NAME.fullmatch(path.name) or path.name.endswith(shard_index.COLUMNS_SUFFIX):
            path.unlink()


def _link(source: epath.Path, final: epath.Path) -> None:
    if "://" not in os.fspath(final):
        with contextlib.suppress(OSError):
            os.link(os.fspath(source), os.fspath(final))
            return
    source.copy(final, overwrite=True)
