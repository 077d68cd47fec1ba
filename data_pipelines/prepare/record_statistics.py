"""Statistics of every record of a shard, and their totals over a split."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
from typing import Any

from jaxtyping import Int64
import numpy as np

from data_pipelines.audio import loudness
from data_pipelines.corpora import shard_index
from data_pipelines.prepare.validate import PreparedRecord

ROW = np.dtype(
    [
        *((name, shard_index.COLUMNS_DTYPE[name]) for name in ("hash", "characters")),
        ("seconds", "<f8"),
        ("decibels", "<f4"),
        ("line", "<u4"),  # of the manifest, counted from 0
        ("sound", "<u8", 2),  # digest of sound and text
        ("name", "<u8", 2),  # digest of the id
        *((name, "<u4") for name in ("speaker", "language", "source")),  # indices in `Names`
    ]
)
NAMES = ("speaker", "language", "source")
Names = Mapping[str, Sequence[str]]  # by field, the names that the indices in rows stand for


class RecordRows:
    """Gathers the rows of one shard, or of a small split."""

    def __init__(self) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._indices: dict[str, dict[str, int]] = {name: {} for name in NAMES}

    def add(self, prepared: PreparedRecord, line: int) -> None:
        """Adds a record, made of that line of the manifest, counted from 0."""
        utterance = prepared.utterance
        indices = [
            known.setdefault(getattr(utterance, name), len(known))
            for name, known in self._indices.items()
        ]
        self._rows.append(
            (
                shard_index.utterance_hash(utterance.source, utterance.id),
                len(utterance.text),
                utterance.seconds,
                prepared.decibels,
                line,
                _halves(prepared.digest),
                _halves(hashlib.sha256(utterance.id.encode()).digest()),
                *indices,
            )
        )

    def array(self) -> np.ndarray:
        """All rows, of `ROW`."""
        return np.array(self._rows, ROW)

    def names(self) -> Names:
        """The names that the indices in the rows stand for."""
        return {name: list(known) for name, known in self._indices.items()}


@dataclasses.dataclass
class SplitTotals:
    """Totals over the shards of one split, which may be added in any order."""

    count: int = 0
    characters: int = 0
    speakers: set[str] = dataclasses.field(default_factory=set)
    shares: dict[str, dict[str, tuple[int, float]]] = dataclasses.field(
        default_factory=lambda: {"language": {}, "source": {}}
    )  # field → name → records and seconds
    levels: dict[str, Int64[np.ndarray, "bins"]] = dataclasses.field(default_factory=dict)

    def add(self, rows: np.ndarray, names: Names) -> None:
        """Adds the records of one shard."""
        self.count += len(rows)
        self.characters += int(rows["characters"].sum())
        self.speakers |= {names["speaker"][i] for i in np.unique(rows["speaker"])} - {""}
        for field, found in self.shares.items():
            for number, mine in _groups(rows[field]):
                count, seconds = found.get(names[field][number], (0, 0.0))
                more = float(rows["seconds"][mine].sum())
                found[names[field][number]] = count + len(mine), seconds + more
        for number, mine in _groups(rows["source"]):
            levels = rows["decibels"][mine]
            counts = loudness.level_histogram(levels[~np.isnan(levels)])  # text alone has none
            source = names["source"][number]
            self.levels[source] = self.levels.get(source, 0) + counts

    def summary(self, rejects: Mapping[str, int]) -> shard_index.SplitSummary:
        """The summary of the split for the index, with its rejects by reason."""
        shares = {
            field: {
                name: shard_index.Subtotal(n, s / 3600) for name, (n, s) in sorted(found.items())
            }
            for field, found in self.shares.items()
        }
        return shard_index.SplitSummary(
            self.characters, len(self.speakers), shares["language"], shares["source"], rejects
        )


def loudness_by_source(tallies: Iterable[SplitTotals]) -> dict[str, Mapping[str, float]]:
    """Loudness by source over several splits, as the index has it."""
    found: dict[str, Int64[np.ndarray, " bins"]] = {}
    for tally in tallies:
        for source, counts in tally.levels.items():
            found[source] = found.get(source, 0) + counts
    heard = [source for source in sorted(found) if found[source].any()]
    return {source: loudness.level_summary(found[source]) for source in heard}


def columns(rows: np.ndarray) -> np.ndarray:
    """The columns of the rows that are published beside the shards."""
    found = np.zeros(len(rows), shard_index.COLUMNS_DTYPE)
    for field in shard_index.COLUMNS_DTYPE.names or ():
        found[field] = rows[field]
    return found


def _groups(numbers: np.ndarray) -> Iterable[tuple[int, Int64[np.ndarray, "n"]]]:
    """Each different number with the indices where it stands."""
    return [(int(one), np.flatnonzero(numbers == one)) for one in np.unique(numbers)]


def _halves(digest: bytes) -> tuple[int, int]:
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")
