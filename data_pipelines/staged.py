"""One task of preparing: consecutive lines of a manifest to a shard that waits to be published.

What must hold: a task's files are a function of its lines and of `Job`'s identity alone, and its
sidecar, written last, says so; a task whose sidecar fits is not done again. Any number of workers
may do the same task at once: each writes in a folder of its own and renames.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

from etils import epath
import numpy as np

from data_pipelines import duplicates, shards, text
from data_pipelines.checked import Made, Refused, crashed, made
from data_pipelines.manifest import SUFFIX, parsed
from data_pipelines.mel import Moments
from data_pipelines.sources import digest, open_source
from data_pipelines.tally import Rows
from data_pipelines.task import Job, Task, named
from data_pipelines.utterance import Utterance, decode
from melllm_jax.errors import Fault

STOP = "stop"  # a file of this name in the work folder ends all tasks
# Files of a task beside its shard, after its name: what is known of the shard and, where records
# are taken out of it, the shard without them and which they are.
SIDECAR, ROWS, KEPT, LOST = ".json", ".npy", ".kept" + shards.SUFFIX, ".lost.json"
FEWEST = 100  # unusable utterances before a job stops early: a few are all listed
LAYOUT = 1  # of what is staged: another one is not gone on with


def sidecar(task: Task, job: Job) -> dict[str, Any] | None:
    """What the task left, or None where it is not done."""
    try:
        return json.loads((epath.Path(job.work) / (task.name + SIDECAR)).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def lost(task: Task, job: Job) -> dict[str, Any] | None:
    """What `reduced` left, or None where no record repeats another."""
    try:
        return json.loads((epath.Path(job.work) / (task.name + LOST)).read_bytes())
    except FileNotFoundError:
        return None


def stopped(job: Job) -> bool:
    """Whether the job is to end without being done."""
    return (epath.Path(job.work) / STOP).exists()


def rows(task: Task, job: Job) -> np.ndarray:
    """What is known of each record that the task left."""
    content = (epath.Path(job.work) / (task.name + ROWS)).read_bytes()
    return np.load(io.BytesIO(content))


def staged(
    task: Task,
    job: Job,
    *,
    skip: Mapping[int, str],
    tick: Callable[[int], None] = lambda line: None,
) -> None:
    """Does the task, unless it is done or the job is to stop.

    skip: lines that brought a process down, counted from the task's first, and how. tick is told
    the number of each line before it is read. Raises Mistake for a line that is none, and Fault.
    """
    work = epath.Path(job.work)
    content = _content(task)
    key = _key(task, job, content, skip)
    if (done := sidecar(task, job)) and done["key"] == key or stopped(job):
        return
    with _folder(work) as folder:
        writer = shards.Writer(epath.Path(folder), task.split, per_shard=sys.maxsize)
        rows_, rejects, moments = Rows(), list[Refused](), Moments()
        for number, one in _outcomes(task, job, content, skip, tick):
            if isinstance(one, Refused):
                rejects.append(one)
            else:
                rows_.add(one, task.line + number)
                moments += one.moments
                if one.record:
                    writer.add(one.record, one.utterance.duration)
            if len(rejects) > max(job.allowed, FEWEST):
                key = ""  # what is there is not the whole of it
                shards.write(work / STOP, b"too many utterances are unusable")
                break
        shard = next(iter(writer.close()), None)
        array = rows_.array()
        tree = {
            "key": key,
            "shard": _described(shard),
            "count": len(array),
            "names": rows_.names(),
            "moments": dataclasses.asdict(moments),
            "rejects": _listed(rejects),
        }
        if shard:
            shards.publish(folder / shard.name, work / (task.name + shards.SUFFIX))
        _put(folder, work / (task.name + ROWS), _saved(array))
        _put(folder, work / (task.name + SIDECAR), json.dumps(tree).encode())


def reduced(split: str, number: int, job: Job, losses: np.ndarray) -> None:
    """The staged shard without the records that repeat others: a second one, and what it lacks."""
    work, name = epath.Path(job.work), named(split, number)
    gone = {int(loss["row"]): loss for loss in losses}
    rejects = []
    with _folder(work) as folder:
        writer = shards.Writer(epath.Path(folder), split, per_shard=sys.maxsize)
        for row, record in enumerate(shards.records(work / (name + shards.SUFFIX))):
            utterance = decode(record)
            if (loss := gone.get(row)) is None:
                writer.add(record, utterance.duration)
                continue
            same = "id" if loss["kind"] == 0 else "sound and text"
            first = f"{job.splits[loss['rank']]}{SUFFIX}:{loss['line'] + 1}"
            detail = f"{utterance.id}: has the same {same} as {first}"
            reason = duplicates.REASONS[loss["kind"]]
            rejects.append(Refused(utterance.source, utterance.id, reason, detail))
        shard = next(iter(writer.close()), None)
        if shard:
            shards.publish(folder / shard.name, work / (name + KEPT))
        tree = {"rows": sorted(gone), "shard": _described(shard), "rejects": _listed(rejects)}
        _put(folder, work / (name + LOST), json.dumps(tree).encode())


def _outcomes(
    task: Task,
    job: Job,
    content: bytes,
    skip: Mapping[int, str],
    tick: Callable[[int], None],
) -> Iterator[tuple[int, Made | Refused]]:
    """What becomes of each line, with its number in the task."""
    tokenizer = text.load(job.tokenizer) if job.tokenizer else None
    for number, utterance in _utterances(task, content):
        tick(number)
        if number in skip:
            yield number, crashed(utterance, skip[number])
        else:
            yield from ((number, one) for one in made(utterance, job.making, tokenizer))


def _utterances(task: Task, content: bytes) -> Iterator[tuple[int, Utterance]]:
    path = epath.Path(task.source)
    if path.is_dir():
        corpus = open_source(path, task.split)
        yield from ((number, corpus[task.start + number]) for number in range(task.lines))
        return
    for number, line in enumerate(content.split(b"\n")):
        if line:
            where = f"{task.source}:{task.line + number + 1}"
            yield number, parsed(line, path.parent, where)


def _content(task: Task) -> bytes:
    path = epath.Path(task.source)
    if path.is_dir():
        return digest(path, task.split).encode()
    try:
        with path.open("rb") as file:
            file.seek(task.start)
            return bytes(file.read(task.stop - task.start))
    except OSError as error:
        raise Fault(f"{task.source}: cannot be read: {error}") from error


def _key(task: Task, job: Job, content: bytes, skip: Mapping[int, str]) -> str:
    """Hash of all that decides what the task leaves."""
    said = [dataclasses.asdict(task), dataclasses.asdict(job.making), job.digest, sorted(skip)]
    parts = json.dumps([LAYOUT, *said]).encode()
    return hashlib.sha256(hashlib.sha256(parts).digest() + content).hexdigest()


@contextlib.contextmanager
def _folder(work: epath.Path) -> Iterator[pathlib.Path]:
    """A folder on this machine for files under way: that of no other worker."""
    try:
        path = tempfile.mkdtemp(dir=None if "://" in os.fspath(work) else os.fspath(work))
    except OSError as error:
        raise Fault(f"{work}: cannot be written: {error}") from error
    try:
        yield pathlib.Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _put(folder: pathlib.Path, final: epath.Path, content: bytes) -> None:
    try:
        part = folder / final.name
        part.write_bytes(content)
        shards.publish(part, final)
    except OSError as error:
        raise Fault(f"{final}: cannot be written: {error}") from error


def _saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _described(shard: shards.Shard | None) -> dict[str, Any] | None:
    return None if shard is None else dataclasses.asdict(shard)


def _listed(rejects: list[Refused]) -> list[dict[str, str]]:
    return [dataclasses.asdict(one) for one in rejects]
