"""The utterances of a split, counted one after another."""

from collections import Counter
import dataclasses

import numpy as np

from data_pipelines.utterance import Utterance

NAMED = 10  # texts that come more than once, and speakers, that are named
SHOWN = 5  # outliers at each end that are shown
FAR = 3.0  # quartile ranges beyond a quartile: "far out" in Tukey 1977, Exploratory Data Analysis
KINDS = ("speaker", "language", "source")


@dataclasses.dataclass(frozen=True)
class Share:
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


class Reading:
    """What has been read of a split."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.seconds: list[float] = []
        self.lengths: list[int] = []  # characters
        self.letters: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()
        self._counts = {kind: Counter[str]() for kind in KINDS}
        self._seconds: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}

    def add(self, index: int, utterance: Utterance) -> None:
        """One more, which lies at `index` of the corpus."""
        self.indices.append(index)
        self.seconds.append(utterance.duration)
        self.lengths.append(len(utterance.text))
        self.letters.update(utterance.text)
        self.texts[utterance.text] += 1
        for kind in KINDS:
            name, seconds = getattr(utterance, kind), self._seconds[kind]
            self._counts[kind][name] += 1
            seconds[name] = seconds.get(name, 0.0) + utterance.duration

    def shares(self, kind: str) -> tuple[Share, ...]:
        """By speaker, language or source, the most hours first; what has no name is left out."""
        found = [
            Share(name, count, self._seconds[kind][name] / 3600)
            for name, count in self._counts[kind].items()
            if name
        ]
        return tuple(sorted(found, key=lambda share: (-share.hours, share.name)))

    def unnamed(self, kind: str) -> int:
        """Utterances that do not say their speaker, language or source."""
        return self._counts[kind][""]

    def repeated(self) -> tuple[tuple[str, int], ...]:
        """The texts that come most often, and how often, if more than once."""
        return tuple((text, n) for text, n in self.texts.most_common(NAMED) if n > 1)

    def outliers(self) -> Outliers:
        """Those whose characters a second are far out; no length, no rate."""
        seconds, lengths = np.array(self.seconds), np.array(self.lengths)
        (timed,) = np.nonzero(seconds > 0)
        if not timed.size:
            return Outliers(0, (), ())
        rates = lengths[timed] / seconds[timed]
        first, third = np.quantile(rates, (0.25, 0.75))
        far = FAR * (third - first)
        order = np.argsort(rates, kind="stable")
        slowest = order[rates[order] < first - far]
        fastest = order[rates[order] > third + far][::-1]
        shown = [
            tuple(self.indices[timed[place]] for place in end[:SHOWN]) for end in (fastest, slowest)
        ]
        return Outliers(len(slowest) + len(fastest), *shown)
