"""A natural English voice, by hibari-tts (distilled from Kokoro-82M, inside its wheel)."""

import functools
from typing import Any

from jaxtyping import Float32
import numpy as np

from data_pipelines.audio.sound import resample
from melllm_jax.errors import Fault, Mistake

SPEAKER = "hibari-heart"  # what the corpus calls it
RATE = 24_000  # Hz


def speak(text: str, pace: float = 1.0, seed: int = 0) -> Float32[np.ndarray, " w"]:
    """Speaks `text`: float32 in [-1, 1] at 16 kHz, the same for the same three arguments.

    pace: 2 is twice as fast as 1, the voice's own. seed: of the noise in its breath. Raises Mistake
    where the extra `natural` is not installed, Fault where the voice says nothing.
    """
    wave = load()(text, speed=pace, seed=seed)
    if not wave.size or not np.abs(wave).max() > 0:
        raise Fault(f"text={text!r}: the natural voice says nothing")
    return np.clip(resample(np.asarray(wave, np.float32), RATE), -1, 1)


@functools.cache
def load() -> Any:
    """The voice, loaded once a process, on one thread. Raises Mistake without the extra."""
    try:
        from hibari import Hibari  # noqa: PLC0415
    except ImportError as error:
        install = 'pip install "melllm_jax[natural]"'
        raise Mistake(f"the natural voice needs the extra natural ({error}): {install}") from error
    return Hibari(threads=1)
