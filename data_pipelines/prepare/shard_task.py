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

from data_pipelines.audio.log_mel import Moments
from data_pipelines.corpora import shard_index, shard_reader, shard_writer
from data_pipelines.corpora.corpus import open_corpus, split_digest
from data_pipelines.corpora.manifest import MANIFEST_SUFFIX, parse_line
from data_pipelines.corpora.utterance import Utterance, decode_record
from data_pipelines.prepare import deduplicate
from data_pipelines.prepare.record_statistics import RecordRows
from data_pipelines.prepare.tasks import Job, Task, shard_stem
from data_pipelines.prepare.validate import (
    PreparedRecord,
    make_records,
    reject_crashed,
)
from data_pipelines.reject import Reject
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax import files
from melllm_jax.errors import Fault

STOP = "stop"  # a file of this name in the work folder ends all tasks
# Files of a task beside its shard, after its name: what is known of the shard and, where records
# are taken out of it, the shard without them and which they are.
SIDECAR, ROWS, DEDUPLICATED, REPEATS = (
    ".json",
    ".npy",
    ".kept" + shard_index.SHARD_SUFFIX,
    ".lost.json",
)
MIN_REJECTS = 100  # unusable utterances before a job stops early: a few are all listed
LAYOUT_VERSION = 1  # of what is staged: another one is not gone on with


def read_sidecar(task: Task, job: Job) -> dict[str, Any] | None:
    """What the task left, or None where it is not done."""
    try:
        return json.loads((epath.Path(job.work) / (task.name + SIDECAR)).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def read_repeats(task: Task, job: Job) -> dict[str, Any] | None:
    """What `write_without_repeats` left, or None where no record repeats another."""
    try:
        return json.loads((epath.Path(job.work) / (task.name + REPEATS)).read_bytes())
    except FileNotFoundError:
        return None


def is_stopped(job: Job) -> bool:
    """Whether the job is to end without being done."""
    return (epath.Path(job.work) / STOP).exists()


def read_rows(task: Task, job: Job) -> np.ndarray:
    """What is known of each record that the task left."""
    content = (epath.Path(job.work) / (task.name + ROWS)).read_bytes()
    return np.load(io.BytesIO(content))


def stage_task(
    task: Task,
    job: Job,
    *,
    skip: Mapping[int, str],
    progress: Callable[[int], None] = lambda line: None,
) -> None:
    """Does the task, unless it is done or the job is to stop.

    skip: lines that brought a process down, counted from the task's first, and how. progress is
    called with the index of each line before it is read. Raises Mistake for a malformed line, and
    Fault.
    """
    work = epath.Path(job.work)
    content = _content(task)
    key = _key(task, job, content, skip)
    if (done := read_sidecar(task, job)) and done["key"] == key or is_stopped(job):
        return
    with _folder(work) as folder:
        writer = shard_writer.ShardWriter(epath.Path(folder), task.split, per_shard=sys.maxsize)
        rows_, rejects, moments = RecordRows(), list[Reject[str]](), Moments()
        for number, one in _outcomes(task, job, content, skip, progress):
            if isinstance(one, Reject):
                rejects.append(one)
            else:
                rows_.add(one, task.line + number)
                moments += one.moments
                if one.record:
                    writer.add(one.record, one.utterance.duration)
            if len(rejects) > max(job.max_rejects, MIN_REJECTS):
                key = ""  # what is there is not the whole of it
                files.write_bytes(work / STOP, b"too many utterances are unusable")
                break
        shard = next(iter(writer.close()), None)
        array = rows_.array()
        tree = {
            "key": key,
            "shard": _shard_dict(shard),
            "count": len(array),
            "names": rows_.names(),
            "moments": dataclasses.asdict(moments),
            "rejects": _reject_dicts(rejects),
        }
        if shard:
            files.move_into_place(
                folder / shard.name, work / (task.name + shard_index.SHARD_SUFFIX)
            )
        _put(folder, work / (task.name + ROWS), _npy_bytes(array))
        _put(folder, work / (task.name + SIDECAR), json.dumps(tree).encode())


def write_without_repeats(split: str, number: int, job: Job, losses: np.ndarray) -> None:
    """The staged shard without the records that repeat others: a second one, and what it lacks."""
    work, name = epath.Path(job.work), shard_stem(split, number)
    gone = {int(loss["row"]): loss for loss in losses}
    rejects = []
    with _folder(work) as folder:
        writer = shard_writer.ShardWriter(epath.Path(folder), split, per_shard=sys.maxsize)
        for row, record in enumerate(
            shard_reader.read_records(work / (name + shard_index.SHARD_SUFFIX))
        ):
            utterance = decode_record(record)
            if (loss := gone.get(row)) is None:
                writer.add(record, utterance.duration)
                continue
            same = "id" if loss["kind"] == 0 else "sound and text"
            first = f"{job.splits[loss['rank']]}{MANIFEST_SUFFIX}:{loss['line'] + 1}"
            detail = f"{utterance.id}: has the same {same} as {first}"
            reason = deduplicate.REASONS[loss["kind"]]
            rejects.append(Reject(utterance.source, utterance.id, reason, detail))
        shard = next(iter(writer.close()), None)
        if shard:
            files.move_into_place(folder / shard.name, work / (name + DEDUPLICATED))
        tree = {
            "rows": sorted(gone),
            "shard": _shard_dict(shard),
            "rejects": _reject_dicts(rejects),
        }
        _put(folder, work / (name + REPEATS), json.dumps(tree).encode())


def _outcomes(
    task: Task,
    job: Job,
    content: bytes,
    skip: Mapping[int, str],
    progress: Callable[[int], None],
) -> Iterator[tuple[int, PreparedRecord | Reject[str]]]:
    """What becomes of each line, with its number in the task."""
    tokenizer = load_tokenizer(job.tokenizer) if job.tokenizer else None
    for number, utterance in _utterances(task, content):
        progress(number)
        if number in skip:
            yield number, reject_crashed(utterance, skip[number])
        else:
            yield from (
                (number, one) for one in make_records(utterance, job.record_config, tokenizer)
            )


def _utterances(task: Task, content: bytes) -> Iterator[tuple[int, Utterance]]:
    path = epath.Path(task.source)
    if path.is_dir():
        corpus = open_corpus(path, task.split)
        yield from ((number, corpus[task.start + number]) for number in range(task.lines))
        return
    for number, line in enumerate(content.split(b"\n")):
        if line:
            where = f"{task.source}:{task.line + number + 1}"
            yield number, parse_line(line, path.parent, where)


def _content(task: Task) -> bytes:
    path = epath.Path(task.source)
    if path.is_dir():
        return split_digest(path, task.split).encode()
    try:
        with path.open("rb") as file:
            file.seek(task.start)
            return bytes(file.read(task.stop - task.start))
    except OSError as error:
        raise Fault(f"{task.source}: cannot be read: {error}") from error


def _key(task: Task, job: Job, content: bytes, skip: Mapping[int, str]) -> str:
    """Hash of all that decides what the task leaves."""
    said = [
        dataclasses.asdict(task),
        dataclasses.asdict(job.record_config),
        job.digest,
        sorted(skip),
    ]
    parts = json.dumps([LAYOUT_VERSION, *said]).encode()
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
        files.move_into_place(part, final)
    except OSError as error:
        raise Fault(f"{final}: cannot be written: {error}") from error


def _npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _shard_dict(shard: shard_index.Shard | None) -> dict[str, Any] | None:
    return None if shard is None else dataclasses.asdict(shard)


def _reject_dicts(rejects: list[Reject[str]]) -> list[dict[str, str]]:
    return [dataclasses.asdict(one) for one in rejects]
