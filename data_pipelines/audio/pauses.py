"""Splits long sound into pieces, cutting only where nobody speaks."""

from jaxtyping import Float32
import numpy as np

from melllm_jax.features.mel_filters import SAMPLE_RATE

FRAME = 0.02  # seconds
PAUSE = 15  # frames: 0.3 s of silence around a cut, longer than the closure of a stop consonant
DEPTH = 30.0  # dB below the loud frames: a frame is silent there
LOUD = 95  # percentile of the frames' levels that counts as loud
QUIETEST = -60.0  # dBFS: below this a frame is silent however quiet the rest is


def split_at_pauses(wave: Float32[np.ndarray, "w"], longest: float) -> tuple[slice, ...]:
    """Where to cut 16 kHz sound into pieces of `longest` seconds at most; () where it cannot be.

    A cut lies in the middle of the last pause within reach, with 0.15 s of silence or more on
    either side; together the pieces are the whole sound.
    """
    size, limit = round(SAMPLE_RATE * FRAME), int(longest * SAMPLE_RATE)
    middles = _pause_frames(wave, size) * size
    pieces, start = [], 0
    while wave.size - start > limit:
        within = middles[(middles > start) & (middles <= start + limit)]
        if not within.size:
            return ()
        last = np.flatnonzero(np.diff(within, prepend=-limit) > size)[-1]  # pause within reach
        pieces.append(slice(start, int(within[last:].mean())))
        start = pieces[-1].stop
    return (*pieces, slice(start, wave.size))


def _pause_frames(wave: np.ndarray, size: int) -> np.ndarray:
    """Frames with silence for PAUSE frames around them."""
    frames = wave[: wave.size // size * size].reshape(-1, size)
    levels = 10 * np.log10(frames.var(axis=1, dtype=np.float64) + 1e-12)
    if len(levels) < PAUSE:
        return np.zeros(0, np.int64)
    silent = levels < max(QUIETEST, np.percentile(levels, LOUD) - DEPTH)
    runs = np.lib.stride_tricks.sliding_window_view(silent, PAUSE).all(axis=1)
    return np.flatnonzero(runs) + PAUSE // 2 + 1
