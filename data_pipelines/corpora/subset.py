"""Draws a number of hours of a corpus by hash: 10 h ⊂ 100 h ⊂ …, the same on every machine.

Utterances are ordered by a hash of their source and id, and a subset is the start of that order.
Hashes and durations are in SPLIT.columns.npy beside prepared shards, and are computed from the
lines of a manifest. Durations are added up in whole milliseconds, so that the order of adding does
not change a sum.
"""

from collections.abc import Callable, Iterator

from jaxtyping import UInt32
import numpy as np

from data_pipelines.corpora import shard_index
from data_pipelines.corpora.manifest import Manifest
from data_pipelines.corpora.shard_reader import ShardReader
from data_pipelines.corpora.utterance import Utterance
from melllm_jax.errors import Fault, Mistake

MS_PER_HOUR = 3_600_000  # milliseconds
CHUNK = 1 << 21  # rows read at a time: 32 MB
BITS = 16  # of a hash: its first bits are the bucket that durations are added up in


class Subset:
    """Some utterances of a corpus, in the corpus's order."""

    def __init__(self, corpus: Manifest | ShardReader, rows: UInt32[np.ndarray, "n"], hours: float):
        self.path, self.mel, self.hours = corpus.path, corpus.mel, hours
        self.tokenizer = corpus.tokenizer
        self._corpus, self._rows = corpus, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Utterance:
        return self._corpus[int(self._rows[index])]


def draw_subset(corpus: Manifest | ShardReader, hours: float) -> Subset:
    """The utterances of `corpus` that come first by hash, as many as last `hours` at most.

    For 50 million it takes seconds, and 4 bytes of memory for each chosen one. Raises Mistake where
    these are none, or where the corpus is shorter than `hours`.
    """
    limit, parts = round(hours * MS_PER_HOUR), _columns_reader(corpus)
    upto = np.cumsum(_bucket_milliseconds(parts()))
    if upto[-1] < limit:
        has = f"{corpus.path} has {upto[-1] / MS_PER_HOUR:.2f}"
        raise Mistake(f"data.sources.hours={hours:g}: {has}")
    # Whole buckets as far as they fit, then of the next one what fits in the order of its hashes.
    bucket = int(np.searchsorted(upto, limit, side="right"))
    time = int(upto[bucket - 1]) if bucket else 0
    last = (bucket << (64 - BITS)) - 1
    next_ones = [part[part["hash"] >> (64 - BITS) == bucket] for part in parts()]
    ordered = np.sort(np.concatenate(next_ones), order="hash")
    times = time + np.cumsum(_milliseconds(ordered))
    fits = int(np.searchsorted(times, limit, side="right"))
    if fits:
        time, last = int(times[fits - 1]), int(ordered["hash"][fits - 1])
    rows = [
        np.flatnonzero(part["hash"] <= np.uint64(last)).astype(np.uint32) + np.uint32(start * CHUNK)
        for start, part in enumerate(parts())
        if last >= 0
    ]
    chosen = np.concatenate(rows) if rows else np.zeros(0, np.uint32)
    if not len(chosen):
        raise Mistake(f"data.sources.hours={hours:g}: {corpus.path} has no utterance that short")
    return Subset(corpus, chosen, time / MS_PER_HOUR)


def total_hours(corpus: Manifest | ShardReader | Subset) -> float:
    """Total hours of a corpus; reads every line of a manifest."""
    if isinstance(corpus, Manifest):
        return int(_bucket_milliseconds(_columns_reader(corpus)()).sum()) / MS_PER_HOUR
    return corpus.hours


def _bucket_milliseconds(parts: Iterator[np.ndarray]) -> np.ndarray:
    """Milliseconds of the utterances by the first BITS of their hashes."""
    times = np.zeros(1 << BITS, np.int64)
    for part in parts:
        first = (part["hash"] >> (64 - BITS)).astype(np.intp)
        # As float64 whole numbers are exact up to 2**53 ms: 285,000 years.
        found = np.bincount(first, weights=_milliseconds(part), minlength=1 << BITS)
        times += found.astype(np.int64)
    return times


def _milliseconds(rows: np.ndarray) -> np.ndarray:
    return np.rint(rows["seconds"].astype(np.float64) * 1000).astype(np.int64)


def _columns_reader(corpus: Manifest | ShardReader) -> Callable[[], Iterator[np.ndarray]]:
    """A function that yields a corpus's columns, CHUNK rows at a time; computed for a manifest."""
    starts = range(0, len(corpus), CHUNK)
    if isinstance(corpus, Manifest):
        made = np.fromiter(
            (_columns_row(corpus[index]) for index in range(len(corpus))),
            shard_index.COLUMNS_DTYPE,
            len(corpus),
        )
        return lambda: (made[start : start + CHUNK] for start in starts)

    def mapped(start: int) -> np.ndarray:
        # Mapped anew each time, so that rows read before do not stay in memory.
        rows = shard_index.read_columns(corpus.path, corpus.split)
        if len(rows) != len(corpus):
            what = f"{corpus.path}/{corpus.split}{shard_index.COLUMNS_SUFFIX}"
            raise Fault(f"{what}: has {len(rows)} rows for {len(corpus)} records")
        return rows[start : start + CHUNK]

    return lambda: map(mapped, starts)


def _columns_row(utterance: Utterance) -> tuple[int, float, int]:
    name = shard_index.utterance_hash(utterance.source, utterance.id)
    return name, utterance.seconds, len(utterance.text)
