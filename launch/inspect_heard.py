"""How a split sounds: loudness and mel of a few utterances, and examples to look at and hear."""

from collections import Counter
from collections.abc import Callable, Iterable
import dataclasses

from jaxtyping import Float32
import numpy as np

from data_pipelines import mel
from data_pipelines.audio import BadAudio, to_flac
from data_pipelines.examples import Unfit, framed
from data_pipelines.loudness import decibels
from data_pipelines.sources import Corpus, sound
from data_pipelines.utterance import Utterance
from launch.png import mel_picture
from launch.spread import Spread, spread
from melllm_jax.config import Mel
from melllm_jax.errors import Fault
from melllm_jax.mel_tables import EPS, RATE

CLIPPED = 0.999  # of full scale
DRAWN = Mel(normalize="none")  # mel of sound, in log units
SHOWN = 5  # troubles that are told in full


@dataclasses.dataclass(frozen=True)
class Example:
    """One utterance to look at."""

    split: str
    id: str
    text: str
    speaker: str
    language: str
    source: str
    seconds: float  # as the corpus says
    trouble: str  # why there is nothing to hear or see; "" where there is
    audio: bytes | None  # FLAC, 16 kHz; None for ready mel
    picture: bytes | None  # PNG


@dataclasses.dataclass(frozen=True)
class Heard:
    """What sounds are like, over `of` utterances."""

    of: int  # tried
    troubles: tuple[tuple[str, int], ...]  # why sounds could not be used, and how often
    first: tuple[str, ...]  # the same, in full, of the first few
    loudness: Spread | None  # dBFS; None for ready mel
    clipped: int  # utterances that reach full scale
    mel: str  # what the mel is: its kind, bands and normalisation
    mean: tuple[float, ...]  # of each band
    deviation: tuple[float, ...]  # standard deviation of each band
    examples: tuple[Example, ...]


@dataclasses.dataclass(frozen=True)
class Sound:
    """One utterance that was tried."""

    utterance: Utterance | None = None  # None where its record cannot be read
    wave: Float32[np.ndarray, "w"] | None = None
    frames: Float32[np.ndarray, "frames m"] | None = None
    reason: str = ""  # why something lacks, to count by
    detail: str = ""  # the same for a reader


def heard(
    corpus: Corpus,
    split: str,
    drawn: Iterable[int],
    examples: int,
    tick: Callable[[], object] = lambda: None,
) -> Heard:
    """Hears the utterances at the indices `drawn`, the first `examples` of them to be shown.

    Their mel is kept until all are heard: 0.5 MB each for 15 s of 80 bands.
    """
    cfg = corpus.mel or DRAWN
    mels, levels, clipped = [], [], 0
    troubles: Counter[str] = Counter()
    first: list[str] = []
    shown: list[Example] = []
    tried = 0
    for tried, place in enumerate(drawn, start=1):
        one = _tried(corpus, place, cfg)
        if one.reason:
            troubles[one.reason] += 1
            first = [*first, one.detail][:SHOWN]
        if one.wave is not None:
            levels.append(decibels(one.wave))
            clipped += bool(np.abs(one.wave).max() >= CLIPPED)
        if one.frames is not None and len(one.frames):
            mels.append(one.frames)
        if tried <= examples and one.utterance is not None:
            shown.append(_example(split, one.utterance, one))
        tick()
    mean, invstd = mel.statistics(mels) if mels else ((), ())
    return Heard(
        of=tried,
        troubles=tuple(troubles.most_common()),
        first=tuple(first),
        loudness=spread(np.array(levels)),
        clipped=clipped,
        mel=_named(cfg),
        mean=mean,
        deviation=tuple(max(0.0, inverse**-2 - EPS) ** 0.5 for inverse in invstd),
        examples=tuple(shown),
    )


def _tried(corpus: Corpus, place: int, cfg: Mel) -> Sound:
    found = Sound()
    try:
        utterance = corpus[place]
        found = Sound(utterance)
        if utterance.mel is not None:
            found = Sound(utterance, frames=utterance.mel.astype(np.float32))
        else:
            found = Sound(utterance, sound(utterance))
            assert found.wave is not None
            frames = framed(found.wave, cfg, utterance.id)
            found = dataclasses.replace(found, frames=frames)
    except (BadAudio, Unfit) as error:
        return dataclasses.replace(found, reason=error.reason, detail=str(error))
    except Fault as error:
        return dataclasses.replace(found, reason="cannot be read", detail=str(error))
    return found


def _example(split: str, utterance: Utterance, found: Sound) -> Example:
    return Example(
        split=split,
        id=utterance.id,
        text=utterance.text,
        speaker=utterance.speaker,
        language=utterance.language,
        source=utterance.source,
        seconds=utterance.duration if found.wave is None else found.wave.size / RATE,
        trouble=found.detail,
        audio=None if found.wave is None else to_flac(found.wave),
        picture=None if found.frames is None else mel_picture(found.frames),
    )


def _named(cfg: Mel) -> str:
    how = {"none": "not normalised", "utterance": "normalised by utterance"}
    return f"{cfg.kind}, {cfg.m} bands, {how.get(cfg.normalize, 'normalised over the corpus')}"
