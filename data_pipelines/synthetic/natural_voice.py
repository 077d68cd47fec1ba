"""A natural English voice, by hibari-tts (distilled from Kokoro-82M, inside its wheel)."""

import functools
from typing import Any

from jaxtyping import Float32
import numpy as np

from data_pipelines.audio.sound import resample
from melllm_jax.errors import Fault, Mistake

SPEAKER = "hibari-heart"  # what the corpus calls it
RATE = 24_000  # Hz
QUIET = 0.003  # of the peak, -50 dB: what lies below it at either end is silence
MARGIN = 0.05  # seconds of it that stay; the voice itself adds 0.7 s, a quarter of a sentence


def speak(text: str, pace: float = 1.0, seed: int = 0) -> Float32[np.ndarray, " w"]:
    """Speaks `text`: float32 in [-1, 1] at 16 kHz, the same for the same three arguments.

    pace: 2 is twice as fast as 1, the voice's own. seed: of the noise in its breath. Silence before
    and after is cut to `MARGIN`. Raises Mistake where the extra `natural` is not installed, Fault
    where the voice says nothing.
    """
    wave = np.asarray(load()(text, speed=pace, seed=seed), np.float32)
    if not wave.size or not np.abs(wave).max() > 0:
        raise Fault(f"text={text!r}: the natural voice says nothing")
    return np.clip(resample(_cut_silence(wave), RATE), -1, 1)


def _cut_silence(wave: Float32[np.ndarray, " w"]) -> Float32[np.ndarray, " z"]:
    level, margin = np.abs(wave), round(MARGIN * RATE)
    heard = np.flatnonzero(level > QUIET * level.max())
    return wave[max(0, heard[0] - margin) : heard[-1] + 1 + margin]


@functools.cache
def load() -> Any:
    """The voice, loaded once a process, on one thread. Raises Mistake without the extra."""
    try:
        from hibari import Hibari  # noqa: PLC0415
    except ImportError as error:
        install = 'pip install "melllm_jax[natural]"'
        raise Mistake(f"the natural voice needs the extra natural ({error}): {install}") from error
    return Hibari(threads=1)
