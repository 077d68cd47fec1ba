"""Shards: utterances in ArrayRecord files, with an index that is written last.

A folder without index.json holds nothing whole, however many shards lie in it.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from melllm_jax.config import Mel
from melllm_jax.errors import Fault, Mistake

INDEX = "index.json"
REJECTS = "rejects.jsonl"  # what was left out, a line each: split, id, reason, detail
SUFFIX = ".array_record"
_VERSION = 1
_OPTIONS = "group_size:1,uncompressed"  # FLAC and mel are dense already: zstd only takes time


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a split, as the index describes it."""

    name: str  # file name
    count: int  # records
    seconds: float  # of sound
    size: int  # bytes
    sha256: str  # of the file


@dataclasses.dataclass(frozen=True)
class Index:
    """What a folder of shards holds."""

    mel: Mel | None  # how the stored mel was made; None where records hold FLAC
    splits: Mapping[str, tuple[Shard, ...]]


class Writer:
    """Appends the records of one split to numbered shards; each appears whole or not at all."""

    def __init__(self, folder: epath.Path, split: str, *, per_shard: int) -> None:
        self._folder, self._split, self._per_shard = folder, split, per_shard
        self._shards: list[Shard] = []
        self._writer: Any = None  # ArrayRecordWriter, opened with the first record of a shard
        self._count, self._seconds = 0, 0.0

    def add(self, record: bytes, seconds: float) -> None:
        """One more record, of so many seconds of sound."""
        try:
            if self._writer is None:
                self._name = f"{self._split}-{len(self._shards):05d}{SUFFIX}"
                self._part = _scratch(self._folder / self._name)
                self._writer = ArrayRecordWriter(os.fspath(self._part), _OPTIONS)
            self._writer.write(record)
        except RuntimeError as error:
            raise Fault(f"{self._part}: cannot be written: {error}") from error
        self._count += 1
        self._seconds += seconds
        if self._count == self._per_shard:
            self._finish()

    def close(self) -> tuple[Shard, ...]:
        """The shards written, the last one finished."""
        if self._count:
            self._finish()
        return tuple(self._shards)

    def _finish(self) -> None:
        try:
            self._writer.close()
        except RuntimeError as error:
            raise Fault(f"{self._part}: cannot be written: {error}") from error
        self._writer = None
        with open(self._part, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._part.stat().st_size
        _publish(self._part, self._folder / self._name)
        self._shards.append(Shard(self._name, self._count, self._seconds, size, sha256))
        self._count, self._seconds = 0, 0.0


def write_index(folder: epath.Path, index: Index) -> None:
    """Makes the shards of `folder` a whole: to be called last."""
    splits = {
        split: {
            "count": sum(shard.count for shard in shards),
            "hours": sum(shard.seconds for shard in shards) / 3600,
            "shards": [dataclasses.asdict(shard) for shard in shards],
        }
        for split, shards in index.splits.items()
    }
    mel = index.mel and dataclasses.asdict(index.mel)
    tree = {"version": _VERSION, "stores": "mel" if mel else "flac", "mel": mel, "splits": splits}
    part = _scratch(folder / INDEX)
    part.write_text(json.dumps(tree, indent=1) + "\n")
    _publish(part, folder / INDEX)


def read_index(folder: epath.Path) -> Index:
    """The index of a folder of shards. Raises Fault where it cannot be read."""
    path = folder / INDEX
    try:
        tree = json.loads(path.read_text())
        if tree["version"] != _VERSION:
            raise Mistake(f"{path}: version={tree['version']}: this release reads {_VERSION}")
        mel = tree["mel"] and _mel(tree["mel"])
        splits = {
            split: tuple(Shard(**shard) for shard in part["shards"])
            for split, part in tree["splits"].items()
        }
    except Mistake:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Fault(f"{path}: cannot be read: {error!r}") from error
    return Index(mel, splits)


def _mel(tree: Mapping[str, Any]) -> Mel:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
    return Mel(**fields)


def _scratch(final: epath.Path) -> pathlib.Path:
    """Where a file is written before it becomes `final`: beside it, or on this machine."""
    if "://" in os.fspath(final):
        return pathlib.Path(tempfile.mkdtemp()) / final.name
    return pathlib.Path(os.fspath(final) + ".part")


def _publish(part: pathlib.Path, final: epath.Path) -> None:
    """Renames `part`, or uploads it: an object appears in a bucket only once it is whole."""
    if "://" in os.fspath(final):
        epath.Path(part).copy(final, overwrite=True)
        part.unlink()
        part.parent.rmdir()
    else:
        os.replace(part, os.fspath(final))
