"""The index of a folder of shards (utterances in ArrayRecord files), which is written last.

A folder without index.json is incomplete, however many shards it holds. Beside the shards of a
split lie its columns: the few figures of every record that are needed without reading it.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import os
from typing import Any, Literal

from etils import epath
import numpy as np

from melllm_jax.config.features import Mel
from melllm_jax.config.overrides import written_tree
from melllm_jax.errors import Fault, Mistake
from melllm_jax.files import write_bytes
from melllm_jax.json_text import parse_json

INDEX = "index.json"
REJECTS = "rejects.jsonl"  # what was left out, a line each: split, source, id, reason, detail
SHARD_SUFFIX = ".array_record"
COLUMNS_SUFFIX = ".columns.npy"  # SPLIT.columns.npy: a row a record, in order
COLUMNS_DTYPE = np.dtype([("hash", "<u8"), ("seconds", "<f4"), ("characters", "<u4")])
_VERSION = 2


def _empty_mapping() -> Any:
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
class Subtotal:
    """Records and hours of a part of a split."""

    count: int  # records
    hours: float  # of sound


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """Figures of a split, beside its shards."""

    characters: int = 0  # of text
    speakers: int = 0  # different ones
    languages: Mapping[str, Subtotal] = _empty_mapping()
    sources: Mapping[str, Subtotal] = _empty_mapping()
    rejects: Mapping[str, int] = _empty_mapping()  # utterances left out, by reason


@dataclasses.dataclass(frozen=True)
class MelStatistics:
    """Mean and inverse standard deviation of each mel band over all sound, before normalising."""

    kind: str  # whose extractor, as Mel.kind
    m: int  # bands
    mean: tuple[float, ...]
    invstd: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """What a folder of shards holds."""

    mel: Mel | None  # how the stored mel was made; None where records hold sound
    splits: Mapping[str, tuple[Shard, ...]]
    facts: Mapping[str, SplitSummary] = _empty_mapping()  # by split
    sound: Literal["flac", "opus", "original"] = "flac"  # how it is stored where there is no mel
    tokenizer: str | None = None  # digest of the tokenizer whose ids the records hold
    statistics: MelStatistics | None = None
    # By source: dBFS, mean and percentiles.
    loudness: Mapping[str, Mapping[str, float]] = _empty_mapping()


def shard_name(split: str, index: int) -> str:
    """File name of a shard, given its index in the split."""
    return f"{split}-{index:05d}{SHARD_SUFFIX}"


def utterance_hash(source: str, id: str) -> int:
    """The hash by which subsets are drawn: of "source\\tid", the same on every machine."""
    # Half of a surrogate pair, which JSON can spell, is refused where the text is used.
    name = f"{source}\t{id}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little")


def write_index(folder: epath.Path, index: ShardIndex) -> None:
    """Writes index.json, which completes the shards of `folder`: to be called last."""
    splits = {}
    for split, shards in index.splits.items():
        facts = index.facts.get(split, SplitSummary())
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
        "mel": index.mel and written_tree(index.mel),
        "tokenizer": index.tokenizer and {"digest": index.tokenizer},
        "statistics": index.statistics and dataclasses.asdict(index.statistics),
        "loudness": {source: dict(values) for source, values in index.loudness.items()},
        "splits": splits,
    }
    write_bytes(folder / INDEX, (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())


def read_index(folder: epath.Path) -> ShardIndex:
    """The index of a folder of shards. Raises Fault where it cannot be read."""
    path = folder / INDEX
    try:
        tree = parse_json(path.read_bytes())
        if tree["version"] != _VERSION:
            raise Mistake(f"{path}: version={tree['version']}: this release reads {_VERSION}")
        parts = tree["splits"].items()
        statistics = tree["statistics"] and MelStatistics(**_lists_to_tuples(tree["statistics"]))
        return ShardIndex(
            mel=tree["mel"] and mel_from_json(tree["mel"]),
            splits={k: tuple(Shard(**shard) for shard in part["shards"]) for k, part in parts},
            facts={k: _split_summary(part) for k, part in parts},
            sound="flac" if tree["mel"] else tree["stores"],
            tokenizer=tree["tokenizer"] and tree["tokenizer"]["digest"],
            statistics=statistics,
            loudness=tree["loudness"],
        )
    except Mistake:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Fault(f"{path}: cannot be read: {error!r}") from error


def read_columns(folder: epath.Path, split: str) -> np.ndarray:
    """The rows of SPLIT.columns.npy, mapped where they are on this machine. Raises Fault."""
    path = folder / f"{split}{COLUMNS_SUFFIX}"
    try:
        if "://" in os.fspath(path):
            with path.open("rb") as file:
                rows = np.load(file)
        else:
            rows = np.load(path, mmap_mode="r")
    except Exception as error:  # NumPy reads the header as Python, with whatever that raises
        raise Fault(f"{path}: cannot be read: {error}") from error
    if rows.dtype != COLUMNS_DTYPE:
        raise Fault(f"{path}: has columns {rows.dtype.names}, not {COLUMNS_DTYPE.names}")
    return rows


def mel_from_json(tree: Mapping[str, Any]) -> Mel:
    """A `Mel` from its JSON tree."""
    return Mel(**_lists_to_tuples(tree))


def _split_summary(part: Mapping[str, Any]) -> SplitSummary:
    shares = {
        name: {k: Subtotal(**share) for k, share in part[name].items()}
        for name in ("languages", "sources")
    }
    return SplitSummary(part["characters"], part["speakers"], **shares, rejects=part["rejects"])


def _lists_to_tuples(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
