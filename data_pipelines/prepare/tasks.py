"""Plans the tasks of preparing a folder: which lines become which shard."""

from collections.abc import Iterator
import dataclasses
import json
import mmap
import os

from etils import epath
import numpy as np

from data_pipelines.corpora import shard_index
from data_pipelines.corpora.corpus import list_splits, open_corpus
from data_pipelines.corpora.manifest import MANIFEST_SUFFIX, filled_lines, map_file
from data_pipelines.prepare.deduplicate import sort_splits
from data_pipelines.prepare.validate import Limits, RecordConfig
from melllm_jax import files
from melllm_jax.errors import Mistake


@dataclasses.dataclass(frozen=True)
class Task:
    """The lines of one shard, as a range of bytes, so that no worker reads a manifest from its top.

    Where a prepared folder is prepared again, `start` and `stop` count its records, not bytes.
    """

    split: str
    number: int  # of the shard in its split, from 0
    source: str  # path of the manifest, or of the prepared folder
    start: int  # first byte
    stop: int  # byte after the last
    line: int  # number of the first line, from 0
    lines: int  # with an utterance: blank ones are not counted

    @property
    def name(self) -> str:
        """What the names of its files start with."""
        return shard_stem(self.split, self.number)


@dataclasses.dataclass(frozen=True)
class Job:
    """What all tasks of a preparing job share."""

    work: str  # folder of the staged files
    record_config: RecordConfig
    splits: tuple[str, ...]  # in order of precedence: of equal records the first one stays
    tokenizer: str = ""  # path, or "bytes"; empty stores no tokens
    digest: str = ""  # of the tokenizer
    max_rejects: int = 0  # unusable utterances; with more a task stops the job


def shard_stem(split: str, number: int) -> str:
    """What the names of a task's files start with."""
    return shard_index.shard_name(split, number).removesuffix(shard_index.SHARD_SUFFIX)


def encode_task(task: Task, job: Job) -> str:
    """Task and job as one line of JSON, for another process."""
    return json.dumps([dataclasses.asdict(task), dataclasses.asdict(job)])


def decode_task(line: str) -> tuple[Task, Job]:
    """Task and job from the line that `encode_task` wrote."""
    task, job = json.loads(line)
    tree = job.pop("record_config")
    mel, limits = shard_index.mel_from_json(tree["mel"]), Limits(**tree["limits"])
    record_config = RecordConfig(tree["store"], mel, limits)
    job |= {"record_config": record_config, "splits": tuple(job["splits"])}
    return Task(**task), Job(**job)


CHUNK = 1 << 24  # bytes searched at a time for line ends


def plan_tasks(source: epath.PathLike, per_shard: int) -> list[Task]:
    """The tasks of every split of a folder, `per_shard` utterances each, in order of precedence.

    A folder of manifests is searched for line ends only. Raises Mistake where there is nothing to
    prepare, or only mel, which has lost its sound.
    """
    folder, tasks = files.place(source), []
    for split in sort_splits(list_splits(folder)):
        path = folder / f"{split}{MANIFEST_SUFFIX}"
        if path.exists():
            cuts = _cuts(map_file(path), per_shard)
        else:
            path, corpus = folder, open_corpus(folder, split)
            if corpus.mel is not None:
                raise Mistake(f"source={source}: holds ready mel: preparing starts from audio")
            starts = range(0, len(corpus), per_shard)
            stops = [min(start + per_shard, len(corpus)) for start in starts]
            cuts = ((a, b, a, b - a) for a, b in zip(starts, stops, strict=True))
        planned = [Task(split, i, os.fspath(path), *cut) for i, cut in enumerate(cuts)]
        if not planned:
            raise Mistake(f"{path}: has 0 lines: needs one an utterance")
        tasks += planned
    return tasks


def _cuts(content: mmap.mmap | bytes, per_shard: int) -> Iterator[tuple[int, int, int, int]]:
    """First byte, byte after the last, first line and number of filled lines of each part."""
    start = line = 0  # of the part
    begins = number = filled = 0  # of the next line: its first byte and number; those of the part
    for base in range(0, len(content), CHUNK):
        part = np.frombuffer(content[base : base + CHUNK], np.uint8)
        stops = np.flatnonzero(part == ord("\n")) + base
        if base + CHUNK >= len(content) and (not stops.size or stops[-1] + 1 < len(content)):
            stops = np.append(stops, len(content))
        if not stops.size:
            continue
        has = filled_lines(content, np.concatenate([[begins], stops[:-1] + 1]), stops)
        counts = filled + np.cumsum(has)
        for last in np.flatnonzero(has & (counts % per_shard == 0)).tolist():
            stop = int(stops[last]) + 1
            yield start, min(stop, len(content)), line, per_shard
            start, line = stop, number + last + 1
        begins, number, filled = int(stops[-1]) + 1, number + len(stops), int(counts[-1])
        filled %= per_shard
    if filled:
        yield start, len(content), line, filled
