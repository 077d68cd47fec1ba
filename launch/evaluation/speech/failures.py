"""How generated speech fails, by kind, and the thresholds that say so."""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
from typing import Literal, get_args

import numpy as np

from data_pipelines.audio.loudness import FLOOR
from data_pipelines.audio.sound import Sound
from melllm_jax.errors import Mistake

FailureKind = Literal["no_stop", "silence", "repeated", "cut"]
KINDS: tuple[FailureKind, ...] = get_args(FailureKind)
FRAME_SECONDS = 0.02  # of the frames whose level is measured, side by side


@dataclasses.dataclass(frozen=True)
class FailureRules:
    """Thresholds of the kinds of failure.

    Recordings of LibriSpeech, a natural synthetic voice and espeak-ng's take 0.05 to 0.15 s a
    character, and 1 to 62 % of their frames are silent, most in the shortest clips.
    """

    spare: float = 2.0  # no stop: seconds beyond which, and
    pace: float = 0.2  # seconds a character of the text, sound is longer than the text allows
    silent_level: float = -50.0  # silence: a frame of 20 ms below so many dBFS is silent
    silent_share: float = 0.75  # a share of silent frames over which the sound is silence
    phrase_words: int = 3  # repeated: words of a phrase that comes more often than in the text
    cut_words: int = 2  # cut: fewest words of the text's end that are not heard
    cut_share: float = 0.2  # and least share of its words

    def __post_init__(self) -> None:
        for name in ("spare", "pace"):
            if getattr(self, name) < 0:
                raise Mistake(f"failures.{name}={getattr(self, name)}: must be 0 or more")
        for name in ("silent_share", "cut_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise Mistake(f"failures.{name}={getattr(self, name)}: must lie in [0, 1]")
        for name in ("phrase_words", "cut_words"):
            if getattr(self, name) < 1:
                raise Mistake(f"failures.{name}={getattr(self, name)}: must be positive")
        if not FLOOR < self.silent_level <= 0:
            raise Mistake(
                f"failures.silent_level={self.silent_level}: must lie over {FLOOR:g} and up to "
                "0 dBFS"
            )

    def longest(self, text: str) -> float:
        """The most seconds that a text allows."""
        return self.spare + self.pace * len(text)


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What is known of a spoken text."""

    text: str
    seconds: float
    silent: float  # share of frames
    stopped: bool | None  # as the generator says; None: it does not
    wanted: Sequence[str]  # words of the text, normalised
    heard: Sequence[str]  # words of what the judge heard, normalised
    looped: bool  # the judge was stopped, because it repeated itself


def find_failures(spoken: Spoken, rules: FailureRules) -> dict[FailureKind, float]:
    """The kinds of failure, each with the figure that shows it.

    no_stop: seconds; silence: the share of silent frames; repeated: how many phrases come too
    often; cut: how many words are missing at the end.
    """
    found = dict[FailureKind, float]()
    if spoken.stopped is False or spoken.seconds > rules.longest(spoken.text):
        found["no_stop"] = spoken.seconds
    if spoken.silent > rules.silent_share:
        found["silence"] = spoken.silent
    repeated = count_repeated(spoken.wanted, spoken.heard, rules.phrase_words)
    if repeated or spoken.looped:
        found["repeated"] = repeated
    missing = count_missing(spoken.wanted, spoken.heard)
    if missing >= max(rules.cut_words, rules.cut_share * len(spoken.wanted)):
        found["cut"] = missing
    return found


def silent_share(sound: Sound, level: float) -> float:
    """The share of frames of 20 ms that are below `level` dBFS; 1 of a sound shorter than one.

    dBFS as in `loudness`, but that a constant offset of the whole sound counts.
    """
    width = round(FRAME_SECONDS * sound.rate)
    count = sound.wave.size // width
    if not count:
        return 1.0
    frames = sound.wave[: count * width].reshape(count, width)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return float(np.mean(power < 10 ** (level / 10)))


def count_repeated(wanted: Sequence[str], heard: Sequence[str], words: int) -> int:
    """Phrases of so many words that are heard again, and more often than the text has them.

    A shorter phrase counts too where it is heard twice at once, as in "the cat the cat".
    """
    often, allowed = (_phrase_counts(said, words) for said in (heard, wanted))
    phrases = sum(count > max(1, allowed[phrase]) for phrase, count in often.items())
    echoes, known = (_echo_counts(said, words - 1) for said in (heard, wanted))
    return phrases + sum(count > known[phrase] for phrase, count in echoes.items())


def count_missing(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Words of the text's end that are not heard: what its alignment deletes there.

    Of all alignments with the fewest errors that which deletes most at the end.
    """
    ends = _errors_of_beginnings(wanted, heard)
    totals = [errors + len(wanted) - length for length, errors in enumerate(ends)]
    return len(wanted) - totals.index(min(totals))


def _errors_of_beginnings(wanted: Sequence[str], heard: Sequence[str]) -> list[int]:
    """Word errors of all that is heard against the first 0, 1, … words of the text."""
    row = list(range(len(wanted) + 1))
    for place, word in enumerate(heard, start=1):
        before, row = row, [place]
        for index, other in enumerate(wanted):
            changed = before[index] + (word != other)
            row.append(min(changed, before[index + 1] + 1, row[index] + 1))
    return row


def _phrase_counts(words: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))


def _echo_counts(words: Sequence[str], longest: int) -> Counter[tuple[str, ...]]:
    """Phrases up to a length that are followed by themselves."""
    return Counter(
        tuple(words[i : i + length])
        for length in range(1, longest + 1)
        for i in range(len(words) - 2 * length + 1)
        if words[i : i + length] == words[i + length : i + 2 * length]
    )


def failure_counts(found: Sequence[Mapping[FailureKind, float]]) -> dict[str, int]:
    """How many files fail, in all and by kind."""
    counts = {"files": sum(map(bool, found))}
    return counts | {kind: sum(kind in one for one in found) for kind in KINDS}
