"""What a worker of preparing is told: which lines, and what is to become of them."""

import dataclasses
import json

from data_pipelines import shards
from data_pipelines.checked import Limits, Making


@dataclasses.dataclass(frozen=True)
class Task:
    """The lines of one shard: a range of bytes, so that no worker reads a manifest from its top.

    Where a prepared folder is prepared anew, its records are what is counted in place of bytes.
    """

    split: str
    number: int  # of the shard in its split
    source: str  # path of the manifest, or of the prepared folder
    start: int  # first byte
    stop: int  # byte after the last
    line: int  # number of the first line, from 0
    lines: int  # with an utterance: blank ones are not counted

    @property
    def name(self) -> str:
        """Of its files."""
        return named(self.split, self.number)


@dataclasses.dataclass(frozen=True)
class Job:
    """What all tasks share."""

    work: str  # folder of what is staged
    making: Making
    splits: tuple[str, ...]  # in the order in which their records come first
    tokenizer: str = ""  # path, or "bytes"; empty stores no tokens
    digest: str = ""  # of the tokenizer
    allowed: int = 0  # unusable utterances after which a task stops the job


def named(split: str, number: int) -> str:
    """What the names of a task's files start with."""
    return shards.name(split, number).removesuffix(shards.SUFFIX)


def encoded(task: Task, job: Job) -> str:
    """Both as one line of JSON, for another process."""
    return json.dumps([dataclasses.asdict(task), dataclasses.asdict(job)])


def decoded(line: str) -> tuple[Task, Job]:
    """What `encoded` wrote."""
    task, job = json.loads(line)
    making = job.pop("making")
    whole = Making(making["store"], shards.mel(making["mel"]), Limits(**making["limits"]))
    return Task(**task), Job(**job | {"making": whole, "splits": tuple(job["splits"])})
