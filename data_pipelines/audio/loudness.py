"""Loudness of sound, and its distribution over a corpus.

dBFS here is the root of the mean square, in decibels relative to a full-scale square wave; a
constant offset does not count.
"""

from collections.abc import Mapping

from jaxtyping import Float32, Int64
import numpy as np

FLOOR = -120.0  # dBFS of digital silence, and of all that is quieter
STEP = 0.1  # dB: resolution of percentiles
PERCENTILES = (1, 5, 50, 95, 99)
_BINS = round(-FLOOR / STEP) + 1


def decibels(wave: Float32[np.ndarray, "w"]) -> float:
    """dBFS of a sound, at least -120."""
    power = float(np.var(wave, dtype=np.float64)) if wave.size else 0.0
    return max(10 * np.log10(power), FLOOR) if power else FLOOR


def level_histogram(levels: Float32[np.ndarray, "n"]) -> Int64[np.ndarray, "bins"]:
    """How many of the levels in dBFS lie in each bin; histograms of parts add up."""
    bins = np.rint((levels - FLOOR) / STEP).astype(np.int64)
    return np.bincount(np.clip(bins, 0, _BINS - 1), minlength=_BINS)


def level_summary(counts: Int64[np.ndarray, "bins"]) -> Mapping[str, float]:
    """Mean and percentiles in dBFS, to a tenth, of at least one sound."""
    levels = FLOOR + STEP * np.arange(_BINS)
    below = np.cumsum(counts)
    rank = lambda percent: np.searchsorted(below, percent / 100 * below[-1])
    summary = {"mean": float((levels * counts).sum() / below[-1])}
    summary |= {f"p{percent}": float(levels[rank(percent)]) for percent in PERCENTILES}
    return {name: round(value, 1) for name, value in summary.items()}
