"""Shards: utterances in ArrayRecord files, with an index that is written last.

A folder without index.json holds nothing whole, however many shards lie in it. Beside the shards of
a split lie its columns, which tell of every record what can be asked without reading it.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any, Literal

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
import numpy as np

from melllm_jax.config import Mel
from melllm_jax.errors import Fault, Mistake

INDEX = "index.json"
REJECTS = "rejects.jsonl"  # what was left out, a line each: split, source, id, reason, detail
SUFFIX = ".array_record"
COLUMNS = ".columns.npy"  # SPLIT.columns.npy: a row a record, in order
ROW = np.dtype([("hash", "<u8"), ("seconds", "<f4"), ("characters", "<u4")])
_VERSION = 2
_OPTIONS = "group_size:1,uncompressed"  # FLAC and mel are dense already: zstd only takes time


def _none() -> Any:
    return dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a split, as the index describes it."""

    name: str  # file name
    count: int  # records
    seconds: float  # of sound
    size: int  # bytes
    sha256: str  # of the file


@dataclasses.dataclass(frozen=True)
class Share:
    """What a part of a split comes to."""

    count: int  # records
    hours: float  # of sound


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a split beside its shards."""

    characters: int = 0  # of text
    speakers: int = 0  # different ones
    languages: Mapping[str, Share] = _none()
    sources: Mapping[str, Share] = _none()
    rejects: Mapping[str, int] = _none()  # utterances left out, by reason


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and inverse standard deviation of each mel band over all sound, before normalising."""

    kind: str  # whose extractor, as Mel.kind
    m: int  # bands
    mean: tuple[float, ...]
    invstd: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Index:
    """What a folder of shards holds."""

    mel: Mel | None  # how the stored mel was made; None where records hold sound
    splits: Mapping[str, tuple[Shard, ...]]
    facts: Mapping[str, Facts] = _none()  # by split
    sound: Literal["flac", "opus", "original"] = "flac"  # how it is stored where there is no mel
    tokenizer: str | None = None  # digest of the one that records hold tokens of
    statistics: Statistics | None = None
    loudness: Mapping[str, Mapping[str, float]] = _none()  # by source: dBFS, mean and percentiles


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
                self._name = name(self._split, len(self._shards))
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
        publish(self._part, self._folder / self._name)
        self._shards.append(Shard(self._name, self._count, self._seconds, size, sha256))
        self._count, self._seconds = 0, 0.0


def name(split: str, number: int) -> str:
    """File name of a shard."""
    return f"{split}-{number:05d}{SUFFIX}"


def identity(source: str, id: str) -> int:
    """The hash by which subsets are drawn: of "source\\tid", the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{source}\t{id}".encode()).digest()[:8], "little")


def records(path: epath.Path) -> Iterator[bytes]:
    """Those of one shard, in order. Raises Fault, naming it."""
    try:
        with contextlib.closing(ArrayRecordReader(os.fspath(path))) as reader:
            for row in range(reader.num_records()):
                yield reader.read([row])[0]
    except (RuntimeError, LookupError) as error:
        raise Fault(f"{path}: cannot be read: {error}") from error


def write_index(folder: epath.Path, index: Index) -> None:
    """Makes the shards of `folder` a whole: to be called last."""
    splits = {}
    for split, shards in index.splits.items():
        facts = index.facts.get(split, Facts())
        splits[split] = {
            "count": sum(shard.count for shard in shards),
            "hours": sum(shard.seconds for shard in shards) / 3600,
            "characters": facts.characters,
            "speakers": facts.speakers,
            "languages": {k: dataclasses.asdict(part) for k, part in facts.languages.items()},
            "sources": {k: dataclasses.asdict(part) for k, part in facts.sources.items()},
            "rejects": dict(facts.rejects),
            "shards": [dataclasses.asdict(shard) for shard in shards],
        }
    tree = {
        "version": _VERSION,
        "stores": "mel" if index.mel else index.sound,
        "mel": index.mel and dataclasses.asdict(index.mel),
        "tokenizer": index.tokenizer and {"digest": index.tokenizer},
        "statistics": index.statistics and dataclasses.asdict(index.statistics),
        "loudness": {source: dict(values) for source, values in index.loudness.items()},
        "splits": splits,
    }
    write(folder / INDEX, (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())


def read_index(folder: epath.Path) -> Index:
    """The index of a folder of shards. Raises Fault where it cannot be read."""
    path = folder / INDEX
    try:
        tree = json.loads(path.read_bytes())
        if tree["version"] != _VERSION:
            raise Mistake(f"{path}: version={tree['version']}: this release reads {_VERSION}")
        parts = tree["splits"].items()
        statistics = tree["statistics"] and Statistics(**_tupled(tree["statistics"]))
        return Index(
            mel=tree["mel"] and mel(tree["mel"]),
            splits={k: tuple(Shard(**shard) for shard in part["shards"]) for k, part in parts},
            facts={k: _facts(part) for k, part in parts},
            sound="flac" if tree["mel"] else tree["stores"],
            tokenizer=tree["tokenizer"] and tree["tokenizer"]["digest"],
            statistics=statistics,
            loudness=tree["loudness"],
        )
    except Mistake:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Fault(f"{path}: cannot be read: {error!r}") from error


def columns(folder: epath.Path, split: str) -> np.ndarray:
    """The rows of SPLIT.columns.npy, mapped where they are on this machine. Raises Fault."""
    path = folder / f"{split}{COLUMNS}"
    try:
        if "://" in os.fspath(path):
            with path.open("rb") as file:
                rows = np.load(file)
        else:
            rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise Fault(f"{path}: cannot be read: {error}") from error
    if rows.dtype != ROW:
        raise Fault(f"{path}: has columns {rows.dtype.names}, not {ROW.names}")
    return rows


def mel(tree: Mapping[str, Any]) -> Mel:
    """A `Mel` out of JSON."""
    return Mel(**_tupled(tree))


def write_columns(folder: epath.Path, split: str, parts: Iterable[np.ndarray], count: int) -> None:
    """SPLIT.columns.npy of so many rows, given shard by shard."""
    final = folder / f"{split}{COLUMNS}"
    described = np.lib.format.dtype_to_descr(ROW)
    header = {"descr": described, "fortran_order": False, "shape": (count,)}
    try:
        part = _scratch(final)
        with open(part, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for rows in parts:
                file.write(rows.tobytes())
        publish(part, final)
    except OSError as error:
        raise Fault(f"{final}: cannot be written: {error}") from error


def write(final: epath.Path, content: bytes) -> None:
    """A file that appears whole or not at all. Raises Fault."""
    try:
        part = _scratch(final)
        part.write_bytes(content)
        publish(part, final)
    except OSError as error:
        raise Fault(f"{final}: cannot be written: {error}") from error


def _facts(part: Mapping[str, Any]) -> Facts:
    shares = {
        name: {k: Share(**share) for k, share in part[name].items()}
        for name in ("languages", "sources")
    }
    return Facts(part["characters"], part["speakers"], **shares, rejects=part["rejects"])


def _tupled(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}


def publish(part: pathlib.Path, final: epath.Path) -> None:
    """Renames `part`, or uploads it: an object appears in a bucket only once it is whole."""
    if "://" in os.fspath(final):
        epath.Path(part).copy(final, overwrite=True)
        part.unlink()
    else:
        os.replace(part, os.fspath(final))


def _scratch(final: epath.Path) -> pathlib.Path:
    """Where a file is written before it becomes `final`: beside it, or on this machine."""
    if "://" in os.fspath(final):
        handle, path = tempfile.mkstemp(final.name)
        os.close(handle)
        return pathlib.Path(path)
    return pathlib.Path(os.fspath(final) + ".part")
