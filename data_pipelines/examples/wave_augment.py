"""Augments the sound of training examples: speed, rooms, noise and volume.

Each is a pure function of samples at 16 kHz; `Effects` draws their parameters, each from a
generator of its own, so that switching one on or off does not change the draws of the others.
Defaults and their sources are in `config.data.Augment`.
"""

import math

from jaxtyping import Float32
import numpy as np
import scipy.fft

from data_pipelines.audio.sound import resample
from data_pipelines.audio.spec_augment import RandomStreams
from data_pipelines.corpora.corpus import Corpus, load_utterance_wave, open_corpus, split_digest
from data_pipelines.reject import Unusable
from melllm_jax.config.data import Augment, Sounds
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import SAMPLE_RATE

BAD_NOISE, BAD_ROOM = "bad noise", "bad room"  # reasons of a reject whose own sound is good


class Effects:
    """The changes of sound that a run asks for, its noises and rooms opened once.

    Raises Mistake where those are missing, are not what the run says, or are ready mel.
    """

    def __init__(self, cfg: Augment) -> None:
        self._cfg = cfg
        self._noises = _open_sounds("noises", cfg.noises) if cfg.noise else None
        self._rooms = _open_sounds("rooms", cfg.rooms) if cfg.reverb else None

    def __call__(
        self, wave: Float32[np.ndarray, "w"], draws: RandomStreams
    ) -> Float32[np.ndarray, "changed"]:
        """The sound with the drawn effects: speed, then a room, then noise, then volume.

        `wave` itself where none is drawn. Raises Unusable for a bad noise or impulse response.
        """
        cfg = self._cfg
        if (rng := draws.with_probability("speed", cfg.speed)) is not None:
            wave = change_speed(wave, cfg.speeds[rng.integers(len(cfg.speeds))])
        if self._rooms and (rng := draws.with_probability("reverb", cfg.reverb)) is not None:
            wave = reverberate(wave, _draw_sound(self._rooms, rng, BAD_ROOM))
        if self._noises and (rng := draws.with_probability("noise", cfg.noise)) is not None:
            snr = cfg.snrs[rng.integers(len(cfg.snrs))]
            wave = mix_noise(wave, _draw_sound(self._noises, rng, BAD_NOISE), snr, rng)
        if (rng := draws.with_probability("volume", cfg.volume)) is not None:
            wave = wave * np.float32(rng.uniform(cfg.quietest, cfg.loudest))
        return wave


NO_EFFECTS = Effects(Augment())


def change_speed(wave: Float32[np.ndarray, "w"], factor: float) -> Float32[np.ndarray, "w2"]:
    """The sound `factor` times as fast and as high, of w / factor samples.

    It is treated as recorded at factor · 16 kHz, to the nearest Hz: exact for 0.9 and 1.1.
    """
    return resample(wave, round(SAMPLE_RATE * factor))


def reverberate(
    wave: Float32[np.ndarray, "w"], response: Float32[np.ndarray, "taps"]
) -> Float32[np.ndarray, "w"]:
    """The sound in the room of an impulse response, as loud as before and no later.

    The response's largest sample is taken for the direct path and put at time 0, so that words
    stay at their frames; what rings on after the end is cut. Energies of both sounds are equal,
    as `wav-reverberate` of Kaldi has them. `wave` itself where either is silent.
    """
    direct = int(np.abs(response).argmax())
    wet = _convolve(wave, response)[direct : direct + wave.size]
    dry_level, wet_level = _rms(wave), _rms(wet)
    return wet * np.float32(dry_level / wet_level) if dry_level and wet_level else wave


def mix_noise(
    wave: Float32[np.ndarray, "w"],
    noise: Float32[np.ndarray, "n"],
    snr: float,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "w"]:
    """The sound with a noise added over its whole length, `snr` dB below its own mean power.

    A longer noise is cut at a random place, a shorter one repeated. Power is the mean square over
    all of the sound, pauses included. `wave` itself where it or that piece of noise is silent.
    """
    start = int(rng.integers(max(noise.size - wave.size, 0), endpoint=True))
    piece = np.resize(noise[start : start + wave.size], wave.size)
    speech_level, noise_level = _rms(wave), _rms(piece)
    if not (speech_level and noise_level):
        return wave
    piece *= np.float32(speech_level / noise_level * 10 ** (-snr / 20))
    piece += wave
    return piece


def _convolve(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Linear convolution [w + taps - 1 or more], zero at the end.

    By FFTs over four responses at a time, whose tails are added: for 25 s of sound in 1 s of room
    half the time of one FFT over all, which leaves the cache.
    """
    full = scipy.fft.next_fast_len(wave.size + response.size - 1, real=True)
    points = min(full, 1 << (4 * response.size - 1).bit_length())
    step = points - response.size + 1
    filtered = scipy.fft.rfft(response, points)
    wet = np.zeros(wave.size + points, np.float32)
    for start in range(0, wave.size, step):
        spectrum = scipy.fft.rfft(wave[start : start + step], points)
        spectrum *= filtered
        wet[start : start + points] += scipy.fft.irfft(spectrum, points)
    return wet


def _rms(wave: Float32[np.ndarray, "w"]) -> float:
    """Root of the mean square."""
    return math.sqrt(np.dot(wave, wave) / wave.size)


def _open_sounds(name: str, cfg: Sounds) -> Corpus:
    corpus = open_corpus(cfg.path, cfg.split)
    field = f"data.augment.{name}"
    if corpus.mel is not None:
        raise Mistake(f"{field}.path={cfg.path}: holds ready mel: sound can be mixed, mel cannot")
    if cfg.digest not in ("", now := split_digest(cfg.path, cfg.split)):
        raise Mistake(f"{field}.digest={cfg.digest}: {cfg.path} has {now} now")
    return corpus


def _draw_sound(
    corpus: Corpus, rng: np.random.Generator, reason: str
) -> Float32[np.ndarray, "samples"]:
    """A random sound of `corpus`. Raises Unusable with that reason where it is unusable."""
    try:
        return load_utterance_wave(corpus[int(rng.integers(len(corpus)))])
    except Unusable as error:
        raise Unusable(reason, str(error)) from error
