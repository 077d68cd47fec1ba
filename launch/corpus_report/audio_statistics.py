"""Decodes a sample of a split: loudness and mel statistics, and examples to look at and hear."""

from collections import Counter
from collections.abc import Callable, Iterable
import dataclasses

from jaxtyping import Float32
import numpy as np

from data_pipelines.audio.file_io import to_flac
from data_pipelines.audio.log_mel import band_statistics
from data_pipelines.audio.loudness import decibels
from data_pipelines.corpora.corpus import Corpus, load_utterance_sound
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import sound_to_mel
from data_pipelines.reject import Unusable
from launch.charts.distribution import Distribution, distribution
from launch.charts.spectrogram_png import mel_png
from melllm_jax.config.features import Mel
from melllm_jax.errors import Fault
from melllm_jax.features.mel_filters import EPS, SAMPLE_RATE

CLIPPED = 0.999  # of full scale
PICTURE_MEL = Mel(normalize="none")  # mel of sound, in log units
SHOWN = 5  # errors that are listed in full


@dataclasses.dataclass(frozen=True)
class PageExample:
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
class AudioInspection:
    """Statistics of sound over `of` utterances."""

    of: int  # tried
    troubles: tuple[tuple[str, int], ...]  # why sounds could not be used, and how often
    first: tuple[str, ...]  # the same, in full, of the first few
    loudness: Distribution | None  # dBFS; None for ready mel
    clipped: int  # utterances that reach full scale
    mel: str  # what the mel is: its kind, bands and normalisation
    mean: tuple[float, ...]  # of each band
    deviation: tuple[float, ...]  # standard deviation of each band
    examples: tuple[PageExample, ...]


@dataclasses.dataclass(frozen=True)
class DecodedSound:
    """One utterance that was tried, as far as it could be decoded."""

    utterance: Utterance | None = None  # None where its record cannot be read
    wave: Float32[np.ndarray, "w"] | None = None
    frames: Float32[np.ndarray, "frames m"] | None = None
    reason: str = ""  # why something is missing, to count by
    detail: str = ""  # the same for a reader


def inspect_audio(
    corpus: Corpus,
    split: str,
    drawn: Iterable[int],
    examples: int,
    progress: Callable[[], object] = lambda: None,
) -> AudioInspection:
    """Decodes the utterances at the indices `drawn`; the first `examples` become page examples.

    `progress` is called after each. Their mel is kept until all are decoded: 0.5 MB each for 15 s
    of 80 bands.
    """
    cfg = corpus.mel or PICTURE_MEL
    mels, levels, clipped = [], [], 0
    troubles: Counter[str] = Counter()
    first: list[str] = []
    shown: list[PageExample] = []
    tried = 0
    for tried, index in enumerate(drawn, start=1):
        one = _decode(corpus, index, cfg)
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
        progress()
    mean, invstd = band_statistics(mels) if mels else ((), ())
    return AudioInspection(
        of=tried,
        troubles=tuple(troubles.most_common()),
        first=tuple(first),
        loudness=distribution(np.array(levels)),
        clipped=clipped,
        mel=_mel_description(cfg),
        mean=mean,
        deviation=tuple(max(0.0, inverse**-2 - EPS) ** 0.5 for inverse in invstd),
        examples=tuple(shown),
    )


def _decode(corpus: Corpus, index: int, cfg: Mel) -> DecodedSound:
    sound = DecodedSound()
    try:
        utterance = corpus[index]
        sound = DecodedSound(utterance)
        if not utterance.clips:  # text alone
            return sound
        if utterance.mel is not None:
            sound = DecodedSound(utterance, frames=utterance.mel.astype(np.float32))
        else:
            loaded = load_utterance_sound(utterance)
            sound = DecodedSound(utterance, loaded.at(SAMPLE_RATE).wave)
            frames = sound_to_mel(loaded, cfg, utterance.id)
            sound = dataclasses.replace(sound, frames=frames)
    except Unusable as error:
        return dataclasses.replace(sound, reason=error.reason, detail=str(error))
    except Fault as error:
        return dataclasses.replace(sound, reason="cannot be read", detail=str(error))
    return sound


def _example(split: str, utterance: Utterance, sound: DecodedSound) -> PageExample:
    return PageExample(
        split=split,
        id=utterance.id,
        text=utterance.text,
        speaker=utterance.speaker,
        language=utterance.language,
        source=utterance.source,
        seconds=utterance.duration if sound.wave is None else sound.wave.size / SAMPLE_RATE,
        trouble=sound.detail,
        audio=None if sound.wave is None else to_flac(sound.wave),
        picture=None if sound.frames is None else mel_png(sound.frames),
    )


def _mel_description(cfg: Mel) -> str:
    how = {"none": "not normalised", "utterance": "normalised by utterance"}
    return f"{cfg.kind}, {cfg.m} bands, {how.get(cfg.normalize, 'normalised over the corpus')}"
