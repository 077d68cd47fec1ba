"""What is in a split: counted over all of it where that is cheap, over a seeded sample elsewhere.

Prepared shards have an index and columns, so that the hours, lengths and characters of 50 million
utterances are exact and no record is read for them. Every figure says of how many it is.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses

import numpy as np

from data_pipelines import shards
from data_pipelines.reader import Shards
from data_pipelines.sources import Corpus
from launch.alphabet import Letter, letters
from launch.inspect_reading import NAMED, Reading, Share
from launch.spread import Spread, spread
from melllm_jax.errors import Fault


@dataclasses.dataclass(frozen=True)
class Outlier:
    """An utterance said far faster or far slower than most."""

    id: str
    text: str
    seconds: float
    rate: float  # characters a second


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a split holds."""

    split: str
    utterances: int
    read: int  # utterances whose text and speaker were read: all, or a sample
    unreadable: tuple[str, ...]  # why records of the sample could not be read
    exact: bool  # seconds, characters and rate are of all utterances
    hours: float  # where not exact, the mean of those read times all
    untimed: int  # utterances that last 0 s, as where a manifest does not know
    seconds: Spread | None  # an utterance
    characters: int  # as hours
    rate: Spread | None  # characters a second
    outliers: int  # of those read, with a rate far out
    fastest: tuple[Outlier, ...]
    slowest: tuple[Outlier, ...]
    letters: tuple[Letter, ...]  # most frequent first, of those read
    speakers: int
    all_speakers: bool  # counted over all utterances
    largest: tuple[Share, ...]  # speakers, of those read
    unnamed: int  # of those read, without a speaker
    languages: tuple[Share, ...]
    sources: tuple[Share, ...]
    texts: int  # different ones, of those read
    repeated: tuple[tuple[str, int], ...]  # texts that come most often, and how often


def facts(
    corpus: Corpus,
    split: str,
    known: shards.Facts | None,
    drawn: Iterable[int],
    tick: Callable[[], object] = lambda: None,
) -> Facts:
    """The facts of a split, of which the utterances `drawn` are read; `tick` is told of each.

    `known` is what the index of prepared shards says. A record that cannot be read is told among
    the facts. Raises Fault for columns that are missing or damaged.
    """
    reading, unreadable = Reading(), []
    for place in drawn:
        try:
            reading.add(place, corpus[place])
        except Fault as error:
            unreadable.append(str(error))
        tick()
    seconds, lengths = np.array(reading.seconds), np.array(reading.lengths, np.int64)
    if isinstance(corpus, Shards):
        columns = _columns(corpus, split)
        seconds, lengths = columns["seconds"], columns["characters"]
    scale = len(corpus) / max(len(seconds), 1)
    hours = float(np.sum(seconds, dtype=np.float64)) * scale / 3600
    outliers = reading.outliers()
    return Facts(
        split=split,
        utterances=len(corpus),
        read=len(reading.indices),
        unreadable=tuple(unreadable),
        exact=len(seconds) == len(corpus),
        hours=hours,
        untimed=int(np.sum(seconds == 0)),
        seconds=spread(seconds),
        characters=round(int(np.sum(lengths, dtype=np.int64)) * scale),
        rate=spread(_rates(seconds, lengths)),
        outliers=outliers.count,
        fastest=_told(corpus, outliers.fastest),
        slowest=_told(corpus, outliers.slowest),
        letters=letters(reading.letters),
        speakers=known.speakers if known else len(reading.shares("speaker")),
        all_speakers=known is not None or len(reading.indices) == len(corpus),
        largest=reading.shares("speaker")[:NAMED],
        unnamed=reading.unnamed("speaker"),
        languages=_stated(known.languages) if known else reading.shares("language"),
        sources=_stated(known.sources) if known else reading.shares("source"),
        texts=len(reading.texts),
        repeated=reading.repeated(),
    )


def _columns(corpus: Shards, split: str) -> np.ndarray:
    """A row a record, in order."""
    columns = shards.columns(corpus.path, split)
    if len(columns) != len(corpus):
        where = f"{corpus.path}/{split}{shards.COLUMNS}"
        raise Fault(f"{where}: has {len(columns)} rows, {shards.INDEX} says {len(corpus)}")
    return columns


def _rates(seconds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Characters a second of what lasts, in float32: 50 million of them take 200 MB."""
    rates = np.full(len(seconds), np.nan, np.float32)
    np.divide(lengths, seconds, out=rates, where=seconds > 0, casting="same_kind")
    timed: np.ndarray = rates[np.isfinite(rates)]
    return timed


def _told(corpus: Corpus, places: Iterable[int]) -> tuple[Outlier, ...]:
    return tuple(
        Outlier(one.id, one.text, one.duration, len(one.text) / one.duration)
        for one in map(corpus.__getitem__, places)
    )


def _stated(parts: Mapping[str, shards.Share]) -> tuple[Share, ...]:
    """What the index says of parts that have a name, the most hours first."""
    found = [Share(name, part.count, part.hours) for name, part in parts.items() if name]
    return tuple(sorted(found, key=lambda share: (-share.hours, share.name)))
