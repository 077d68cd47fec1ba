"""Statistics of a split: over all of it where that is cheap, over a seeded sample elsewhere.

Prepared shards have an index and columns, so that the hours, lengths and characters of 50 million
utterances are exact and no record is read for them. Every figure says of how many it is.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
import dataclasses

import numpy as np

from data_pipelines.corpora import shard_index
from data_pipelines.corpora.corpus import Corpus
from data_pipelines.corpora.shard_reader import ShardReader
from data_pipelines.corpora.utterance import Utterance
from launch.charts.distribution import Distribution, distribution
from launch.corpus_report.characters import Letter, letters
from melllm_jax.errors import Fault

NAMED = 10  # texts that come more than once, and speakers, that are named
SHOWN = 5  # outliers at each end that are shown
FAR = 3.0  # quartile ranges beyond a quartile: "far out" in Tukey 1977, Exploratory Data Analysis
LEAST = 1e-6  # seconds: what is said to be shorter has no duration that says anything
KINDS = ("speaker", "language", "source")


@dataclasses.dataclass(frozen=True)
class SpeechShare:
    """The part of a split that a speaker, a language or a source has."""

    name: str
    count: int  # utterances
    hours: float


@dataclasses.dataclass(frozen=True)
class Outliers:
    """Utterances with far more or far fewer characters a second than most."""

    count: int
    fastest: tuple[int, ...]  # indices, the furthest out first
    slowest: tuple[int, ...]


class SplitCounter:
    """Counts the utterances that are read of a split."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.seconds: list[float] = []
        self.lengths: list[int] = []  # characters
        self.letters: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()
        self._counts = {kind: Counter[str]() for kind in KINDS}
        self._seconds: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}

    def add(self, index: int, utterance: Utterance) -> None:
        """Counts `utterance`, which is at `index` of the corpus."""
        self.indices.append(index)
        self.seconds.append(utterance.seconds)
        self.lengths.append(len(utterance.text))
        self.letters.update(utterance.text)
        self.texts[utterance.text] += 1
        for kind in KINDS:
            name, seconds = getattr(utterance, kind), self._seconds[kind]
            self._counts[kind][name] += 1
            seconds[name] = seconds.get(name, 0.0) + utterance.seconds

    def shares(self, kind: str) -> tuple[SpeechShare, ...]:
        """Shares of the named speakers, languages or sources, the most hours first."""
        named = [
            SpeechShare(name, count, self._seconds[kind][name] / 3600)
            for name, count in self._counts[kind].items()
            if name
        ]
        return tuple(sorted(named, key=lambda share: (-share.hours, share.name)))

    def unnamed(self, kind: str) -> int:
        """The number of utterances that do not name their speaker, language or source."""
        return self._counts[kind][""]

    def repeated(self) -> tuple[tuple[str, int], ...]:
        """The most frequent texts and their counts, of those that come more than once."""
        return tuple((text, n) for text, n in self.texts.most_common(NAMED) if n > 1)

    def outliers(self) -> Outliers:
        """Utterances whose characters a second are far out, of those that have a duration."""
        seconds, lengths = np.array(self.seconds), np.array(self.lengths)
        (timed,) = np.nonzero(seconds > LEAST)
        if not timed.size:
            return Outliers(0, (), ())
        rates = lengths[timed] / seconds[timed]
        first, third = np.quantile(rates, (0.25, 0.75))
        far = FAR * (third - first)
        order = np.argsort(rates, kind="stable")
        slowest = order[rates[order] < first - far]
        fastest = order[rates[order] > third + far][::-1]
        shown = [
            tuple(self.indices[timed[position]] for position in end[:SHOWN])
            for end in (fastest, slowest)
        ]
        return Outliers(len(slowest) + len(fastest), *shown)


@dataclasses.dataclass(frozen=True)
class Outlier:
    """An utterance said far faster or far slower than most."""

    id: str
    text: str
    seconds: float
    rate: float  # characters a second


@dataclasses.dataclass(frozen=True)
class SplitInspection:
    """Statistics of a split, as the page and `--json` have them."""

    split: str
    utterances: int
    read: int  # utterances whose text and speaker were read: all, or a sample
    unreadable: tuple[str, ...]  # why records of the sample could not be read
    exact: bool  # seconds, characters and rate are of all utterances
    hours: float  # where not exact, the mean of those read times all
    untimed: int  # utterances that last 0 s, as where a manifest does not know
    seconds: Distribution | None  # an utterance
    characters: int  # as hours
    rate: Distribution | None  # characters a second
    outliers: int  # of those read, with a rate far out
    fastest: tuple[Outlier, ...]
    slowest: tuple[Outlier, ...]
    letters: tuple[Letter, ...]  # most frequent first, of those read
    speakers: int
    all_speakers: bool  # counted over all utterances
    largest: tuple[SpeechShare, ...]  # speakers, of those read
    unnamed: int  # of those read, without a speaker
    languages: tuple[SpeechShare, ...]
    sources: tuple[SpeechShare, ...]
    texts: int  # different ones, of those read
    repeated: tuple[tuple[str, int], ...]  # texts that come most often, and how often


def inspect_split(
    corpus: Corpus,
    split: str,
    known: shard_index.SplitSummary | None,
    drawn: Iterable[int],
    progress: Callable[[], object] = lambda: None,
) -> SplitInspection:
    """The statistics of a split, whose utterances at the indices `drawn` are read.

    `progress` is called after each. `known` is what the index of prepared shards says. A record
    that cannot be read is listed in `unreadable`. Raises Fault for columns that are missing or
    damaged.
    """
    counter, unreadable = SplitCounter(), []
    for index in drawn:
        try:
            utterance = corpus[index]
            if utterance.flaw:
                unreadable.append(utterance.flaw)
            else:
                counter.add(index, utterance)
        except Fault as error:
            unreadable.append(str(error))
        progress()
    seconds, lengths = np.array(counter.seconds), np.array(counter.lengths, np.int64)
    if isinstance(corpus, ShardReader):
        columns = _columns(corpus, split)
        seconds, lengths = columns["seconds"], columns["characters"]
    scale = len(corpus) / max(len(seconds), 1)
    hours = float(np.sum(seconds, dtype=np.float64)) * scale / 3600
    outliers = counter.outliers()
    return SplitInspection(
        split=split,
        utterances=len(corpus),
        read=len(counter.indices),
        unreadable=tuple(unreadable),
        exact=len(seconds) == len(corpus),
        hours=hours,
        untimed=int(np.sum(seconds <= LEAST)),
        seconds=distribution(seconds),
        characters=round(int(np.sum(lengths, dtype=np.int64)) * scale),
        rate=distribution(_rates(seconds, lengths)),
        outliers=outliers.count,
        fastest=_outlier_rows(corpus, outliers.fastest),
        slowest=_outlier_rows(corpus, outliers.slowest),
        letters=letters(counter.letters),
        speakers=known.speakers if known else len(counter.shares("speaker")),
        all_speakers=known is not None or len(counter.indices) == len(corpus),
        largest=counter.shares("speaker")[:NAMED],
        unnamed=counter.unnamed("speaker"),
        languages=_index_shares(known.languages) if known else counter.shares("language"),
        sources=_index_shares(known.sources) if known else counter.shares("source"),
        texts=len(counter.texts),
        repeated=counter.repeated(),
    )


def _columns(corpus: ShardReader, split: str) -> np.ndarray:
    """The columns of a split, a row a record, in order."""
    columns = shard_index.read_columns(corpus.path, split)
    if len(columns) != len(corpus):
        where = f"{corpus.path}/{split}{shard_index.COLUMNS_SUFFIX}"
        raise Fault(f"{where}: has {len(columns)} rows, {shard_index.INDEX} says {len(corpus)}")
    return columns


def _rates(seconds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Characters a second of those with a duration, in float32: 50 million of them take 200 MB."""
    rates = np.full(len(seconds), np.nan, np.float32)
    np.divide(lengths, seconds, out=rates, where=seconds > LEAST, casting="same_kind")
    timed: np.ndarray = rates[np.isfinite(rates)]
    return timed


def _outlier_rows(corpus: Corpus, indices: Iterable[int]) -> tuple[Outlier, ...]:
    return tuple(
        Outlier(one.id, one.text, one.seconds, len(one.text) / one.seconds)
        for one in map(corpus.__getitem__, indices)
    )


def _index_shares(parts: Mapping[str, shard_index.Subtotal]) -> tuple[SpeechShare, ...]:
    """The shares in the index of parts that have a name, the most hours first."""
    named = [SpeechShare(name, part.count, part.hours) for name, part in parts.items() if name]
    return tuple(sorted(named, key=lambda share: (-share.hours, share.name)))
