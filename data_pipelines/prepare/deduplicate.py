"""Finds records that repeat an earlier one, by digest: pure functions between group-by-key steps.

`bundles` sends the digests of a shard's records to buckets; `find_repeats` compares those of one
bucket; `merge_repeats` collects what the buckets found of one shard. Only digests travel, all of a
shard for a bucket in one element, so that a shard of 5,000 records sends 64 small elements. Earlier
means: in a split that is not trained on, then in order of split, shard and row; so held-out data
stays and training loses the copy.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.prepare.record_statistics import ROW

BUCKETS = 64
REASONS = ("duplicate id", "duplicate")  # by kind; ids are compared only within a split
ENTRY = np.dtype(
    [
        ("digest", "<u8", 2),
        ("kind", "u1"),
        ("rank", "<u2"),  # of the split
        ("shard", "<u4"),
        ("row", "<u4"),
        ("line", "<u4"),
    ]
)
REPEAT = np.dtype(
    [("row", "<u4"), ("kind", "u1"), ("rank", "<u2"), ("line", "<u4")]
)  # row of a record that repeats another, and split and line of the one that stays


def sort_splits(splits: Iterable[str]) -> list[str]:
    """Splits in order of precedence: of equal records that of the first split stays."""
    return sorted(splits, key=lambda split: (is_train_split(split), split))


def is_train_split(split: str) -> bool:
    """Whether a split is trained on, by its name: train, train-clean-100, train_960."""
    return split.startswith("train")


def bundles(rows: np.ndarray, rank: int, shard: int, sounds: bool) -> Iterator[tuple[int, bytes]]:
    """The digests of a shard's records by bucket: of their ids and, with `sounds`, their sound."""
    assert rows.dtype == ROW
    parts = []
    for kind, field in enumerate(("name", "sound") if sounds else ("name",)):
        part = np.zeros(len(rows), ENTRY)
        part["digest"], part["line"] = rows[field], rows["line"]
        part["kind"], part["rank"], part["shard"] = kind, rank, shard
        part["row"] = np.arange(len(rows))
        parts.append(part)
    entries = np.concatenate(parts)
    buckets = entries["digest"][:, 0] % BUCKETS
    for bucket in np.unique(buckets):
        yield int(bucket), entries[buckets == bucket].tobytes()


def find_repeats(parts: Iterable[bytes]) -> Iterator[tuple[tuple[int, int], bytes]]:
    """The records of one bucket that repeat an earlier one, by (rank of split, shard)."""
    entries = np.frombuffer(b"".join(parts), ENTRY)
    high, low = entries["digest"][:, 0], entries["digest"][:, 1]
    scope = np.where(entries["kind"] == 0, entries["rank"].astype(np.int64) + 1, 0)
    order = np.lexsort(
        (entries["row"], entries["shard"], entries["rank"], scope, entries["kind"], low, high)
    )
    entries, scope = entries[order], scope[order]
    first = np.ones(len(entries), bool)
    columns = (entries["digest"][:, 0], entries["digest"][:, 1], entries["kind"], scope)
    first[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    kept = entries[np.maximum.accumulate(np.where(first, np.arange(len(entries)), 0))]
    # A runner may send an element twice: a record does not repeat itself.
    differs = [entries[field] != kept[field] for field in ("rank", "shard", "row")]
    repeated = np.any(differs, axis=0)
    entries, kept = entries[repeated], kept[repeated]
    found = np.zeros(len(entries), REPEAT)
    found["row"], found["kind"] = entries["row"], entries["kind"]
    found["rank"], found["line"] = kept["rank"], kept["line"]
    owners = np.stack([entries["rank"], entries["shard"]], axis=1).astype(np.int64)
    for rank, shard in np.unique(owners, axis=0):
        yield (int(rank), int(shard)), found[(owners == (rank, shard)).all(axis=1)].tobytes()


def merge_repeats(parts: Iterable[bytes]) -> np.ndarray:
    """The repeats of one shard in order of row, one a record: a repeated id where it is both."""
    repeats = np.unique(np.frombuffer(b"".join(parts), REPEAT))  # by row, then kind
    return repeats[np.unique(repeats["row"], return_index=True)[1]]
