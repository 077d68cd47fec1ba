"""Does one task of preparing: turns consecutive lines of a manifest into a staged shard.

What must hold: a task's files are a function of its lines and of `Job`'s identity alone. Its
sidecar, written last, has a hash of both; a task whose sidecar has the right hash is not done
again. Any number of workers may do the same task at once: each writes in a folder of its own and
renames.
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
from data_pipelines.corpora.manifest import MANIFEST_SUFFIX, is_blank, parse_line
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
# Suffixes of a task's files beside its shard: a JSON summary, a row for each record and, where
# records repeat others, the shard without them and which they are.
SIDECAR, ROWS, DEDUPLICATED, REPEATS = (
    ".json",
    ".npy",
    ".kept" + shard_index.SHARD_SUFFIX,
    ".lost.json",
)
MIN_REJECTS = 100  # unusable utterances before a job stops early, so that a few are all listed
LAYOUT_VERSION = 1  # of staged files: those of another version are made anew


def read_sidecar(task: Task, job: Job) -> dict[str, Any] | None:
    """The task's JSON summary, or None where the task is not done."""
    try:
        return json.loads((epath.Path(job.work) / (task.name + SIDECAR)).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def read_repeats(task: Task, job: Job) -> dict[str, Any] | None:
    """The summary of `write_without_repeats`, or None where no record repeats another."""
    try:
        return json.loads((epath.Path(job.work) / (task.name + REPEATS)).read_bytes())
    except FileNotFoundError:
        return None


def is_stopped(job: Job) -> bool:
    """Whether the job is to end before all tasks are done."""
    return (epath.Path(job.work) / STOP).exists()


def read_rows(task: Task, job: Job) -> np.ndarray:
    """A row for each record of the task's shard."""
    content = (epath.Path(job.work) / (task.name + ROWS)).read_bytes()
    return np.load(io.BytesIO(content))


def stage_task(
    task: Task,
    job: Job,
    *,
    skip: Mapping[int, str],
    progress: Callable[[int], None] = lambda line: None,
) -> None:
    """Does the task, unless it is done already or the job is stopped.

    skip: lines that crashed a process, counted from the task's first, and how. progress is
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
        record_rows, rejects, moments = RecordRows(), list[Reject[str]](), Moments()
        for index, one in _outcomes(task, job, content, skip, progress):
            if isinstance(one, Reject):
                rejects.append(one)
            else:
                record_rows.add(one, task.line + index)
                moments += one.moments
                if one.record:
                    writer.add(one.record, one.utterance.seconds)
            if len(rejects) > max(job.max_rejects, MIN_REJECTS):
                key = ""  # no valid key: the shard is incomplete
                files.write_bytes(work / STOP, b"too many utterances are unusable")
                break
        shard = next(iter(writer.close()), None)
        array = record_rows.array()
        tree = {
            "key": key,
            "shard": _shard_dict(shard),
            "count": len(array),
            "names": record_rows.names(),
            "moments": dataclasses.asdict(moments),
            "rejects": _reject_dicts(rejects),
        }
        if shard:
            files.move_into_place(
                folder / shard.name, work / (task.name + shard_index.SHARD_SUFFIX)
            )
        _put(folder, work / (task.name + ROWS), _npy_bytes(array))
        _put(folder, work / (task.name + SIDECAR), json.dumps(tree).encode())


def write_without_repeats(split: str, number: int, job: Job, repeats: np.ndarray) -> None:
    """Writes the staged shard once more, without the records that repeat others, and lists those.

    number: of the shard in its split; repeats: rows of `deduplicate.REPEAT`.
    """
    work, name = epath.Path(job.work), shard_stem(split, number)
    repeat_of = {int(repeat["row"]): repeat for repeat in repeats}
    rejects = []
    with _folder(work) as folder:
        writer = shard_writer.ShardWriter(epath.Path(folder), split, per_shard=sys.maxsize)
        for row, record in enumerate(
            shard_reader.read_records(work / (name + shard_index.SHARD_SUFFIX))
        ):
            utterance = decode_record(record)
            if (repeat := repeat_of.get(row)) is None:
                writer.add(record, utterance.seconds)
                continue
            same = "id" if repeat["kind"] == 0 else "sound and text"
            first = f"{job.splits[repeat['rank']]}{MANIFEST_SUFFIX}:{repeat['line'] + 1}"
            detail = f"{utterance.id}: has the same {same} as {first}"
            reason = deduplicate.REASONS[repeat["kind"]]
            rejects.append(Reject(utterance.source, utterance.id, reason, detail))
        shard = next(iter(writer.close()), None)
        if shard:
            files.move_into_place(folder / shard.name, work / (name + DEDUPLICATED))
        tree = {
            "rows": sorted(repeat_of),
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
    """The records and rejects that the lines become, each with the line's index in the task."""
    tokenizer = load_tokenizer(job.tokenizer) if job.tokenizer else None
    for index, utterance in _utterances(task, content):
        progress(index)
        if index in skip:
            yield index, reject_crashed(utterance, skip[index])
        else:
            yield from (
                (index, one) for one in make_records(utterance, job.record_config, tokenizer)
            )


def _utterances(task: Task, content: bytes) -> Iterator[tuple[int, Utterance]]:
    path = epath.Path(task.source)
    if path.is_dir():
        corpus = open_corpus(path, task.split)
        yield from ((index, corpus[task.start + index]) for index in range(task.lines))
        return
    for index, line in enumerate(content.split(b"\n")):
        if not is_blank(line):
            where = f"{task.source}:{task.line + index + 1}"
            yield index, parse_line(line, path.parent, where)


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
    """Hash of everything that decides the task's files."""
    identity = [
        dataclasses.asdict(task),
        dataclasses.asdict(job.record_config),
        job.digest,
        sorted(skip),
    ]
    parts = json.dumps([LAYOUT_VERSION, *identity]).encode()
    return hashlib.sha256(hashlib.sha256(parts).digest() + content).hexdigest()


@contextlib.contextmanager
def _folder(work: epath.Path) -> Iterator[pathlib.Path]:
    """A temporary folder of this worker alone, on this machine, for files being written."""
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
