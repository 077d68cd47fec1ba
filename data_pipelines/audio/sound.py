"""One channel of sound at one of two rates, whatever file or samples it came from.

Alone imports soxr.
"""

from collections.abc import Callable
import dataclasses

from jaxtyping import Float32
import numpy as np
import soxr

from data_pipelines.reject import Unusable
from melllm_jax.features.mel_filters import SAMPLE_RATE, TELEPHONE_RATE

MIN_RATE, MAX_RATE = 8_000, 48_000  # Hz: below telephone speech nothing is left to recognise
# 40 dB over full scale: floats beyond it are damaged, or on the scale of integers.
MAX_AMPLITUDE = 100.0
# Where the mean of all channels is this much quieter than that of the loudest one and silent ones,
# by 14 dB, they are a sound and its opposite. Vorbis leaves it 22 dB quieter.
CANCELLED = 0.2


@dataclasses.dataclass(frozen=True)
class Sound:
    """Samples in [-1, 1] of one channel, at the rate of telephone speech or at 16 kHz."""

    wave: Float32[np.ndarray, "w"]
    rate: int  # Hz: 8,000 where the file has that rate, else 16,000

    @classmethod
    def of(cls, wave: Float32[np.ndarray, "w"], rate: int) -> "Sound":
        """The sound of samples of one channel at `rate` Hz, resampled to 16 kHz but from 8 kHz."""
        if rate == TELEPHONE_RATE:
            return cls(np.ascontiguousarray(wave), rate)
        return cls(resample(wave, rate), SAMPLE_RATE)

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.wave.size / self.rate

    def at(self, rate: int) -> "Sound":
        """The same sound at `rate` Hz, 8,000 or 16,000."""
        return self if rate == self.rate else Sound(resample(self.wave, self.rate, rate), rate)

    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> "Sound":
        """The sound after `change`, which takes samples at 16 kHz; itself where that gives them."""
        before = self.at(SAMPLE_RATE).wave
        after = change(before)
        return self if after is before else Sound(after, SAMPLE_RATE).at(self.rate)


def to_mono(
    sound: Float32[np.ndarray, "w c"], channel: int | None, name: str
) -> Float32[np.ndarray, "w"]:
    """One channel of the sound, the mean of all where `channel` is None.

    Raises Unusable where it has no such channel, or all cancel each other.
    """
    count = sound.shape[1]
    if channel is not None and channel >= count:
        raise Unusable("missing", f"{name}: channel={channel}: has {count} channels, from 0")
    if channel is not None or count == 1:
        return np.ascontiguousarray(sound[:, channel or 0])
    with np.errstate(over="ignore", invalid="ignore"):  # what is no sound is found out later
        wave = sound.mean(axis=1)
        loudest = max(np.dot(one, one) for one in sound.T)
        cancelled = np.dot(wave, wave) < (CANCELLED / count) ** 2 * loudest
    if cancelled:
        rule = "their mean is silent, as of a channel and its opposite: keep one of them"
        raise Unusable("channels cancel each other", f"{name}: {count} channels: {rule}")
    return wave


def resample(
    wave: Float32[np.ndarray, "w"], rate: int, wanted: int = SAMPLE_RATE
) -> Float32[np.ndarray, "resampled"]:
    """The sound at `wanted` Hz instead of `rate` Hz, by soxr's HQ filter (20 bits)."""
    if rate != wanted:
        wave = soxr.resample(wave, rate, wanted, quality="HQ")
    return np.ascontiguousarray(wave)
