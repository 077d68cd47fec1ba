"""Log-mel frames of sound in NumPy, tuned for one core, of every kind of `config.features.Mel`.

The constants are in `melllm_jax.features.mel_filters`, shared with `melllm_jax.features.log_mel`,
which must give the same frames. Safe to call from several threads at once.
"""

from collections.abc import Iterable
import dataclasses
import functools

from jaxtyping import Float32
import numpy as np
import scipy.fft

from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import EPS, MelFilters, make_filters

BLOCK = 128  # frames at a time: with their spectra 0.5 MB, which stays in a core's own cache
GROUP = 16  # bands to a product: as many float32 as the widest register holds


def frame_count(samples: int, cfg: Mel, rate: int = 0) -> int:
    """Frames of a sound of `samples` samples. Raises Mistake where there would be none."""
    table = make_filters(cfg.kind, cfg.m, rate)
    if samples < table.shortest:
        seconds = samples / (rate or cfg.rate)
        raise Mistake(
            f"audio of {samples} samples ({seconds:.3f} s): the {cfg.kind} extractor "
            f"needs {table.shortest} or more for a frame"
        )
    return table.frames(samples)


def normalized_log_mel(
    wave: Float32[np.ndarray, "w"], cfg: Mel, rate: int = 0
) -> Float32[np.ndarray, "frames m"]:
    """`extract_log_mel`, then normalised as cfg.normalize says.

    utterance: every band to mean 0 and variance 1 over these frames. global: (x - mean) * invstd
    with cfg's values, as Phi-4-MM's checkpoint does. Raises Mistake where cfg has none.
    """
    return normalize_mel(extract_log_mel(wave, cfg, rate), cfg)


def normalize_mel(
    mels: Float32[np.ndarray, "frames m"], cfg: Mel
) -> Float32[np.ndarray, "frames m"]:
    """Frames of `extract_log_mel`, normalised in place as cfg.normalize says. Raises Mistake."""
    if cfg.normalize == "utterance":
        mels -= mels.mean(axis=0, dtype=np.float64).astype(np.float32)
        variance = np.square(mels).mean(axis=0, dtype=np.float64)
        mels *= (1.0 / np.sqrt(variance + EPS)).astype(np.float32)
    elif cfg.normalize == "global":
        mean, invstd = _global_statistics(cfg)
        mels -= mean
        mels *= invstd
    return mels


def extract_log_mel(
    wave: Float32[np.ndarray, "w"], cfg: Mel, rate: int = 0
) -> Float32[np.ndarray, "frames m"]:
    """Frames of samples in [-1, 1] at `rate` Hz, in the log units of cfg.kind, not normalised.

    rate: 0 is `cfg.rate`, the only one but for phi4's 8,000 (`mel_filters.mel_rate`). Frame i is
    about the 25 ms from 10 i ms on (phi4) or around sample i · cfg.hop (the others). No cell is
    below cfg.floor, where that is not 0. Raises Mistake for a sound too short for a frame, and for
    another rate.
    """
    table = make_filters(cfg.kind, cfg.m, rate)
    hop, width = table.hop, table.width
    mels = np.empty((frame_count(wave.size, cfg, rate), cfg.m), np.float32)
    padded = np.pad(wave, table.edge, mode=table.mode) if table.edge else wave
    padded_frames = _frame_view(padded, table)
    block = np.zeros((min(BLOCK, len(mels)), table.points), np.float32)
    emphasised = np.zeros((len(block) - 1) * hop + width, np.float32)  # nothing precedes [0]
    emphasised_frames = _frame_view(emphasised, table)
    for start in range(0, len(mels), BLOCK):
        out = mels[start : start + BLOCK]
        frames, filled = padded_frames[start : start + len(out)], block[: len(out)]
        if table.emphasis:
            span = padded[start * hop : (start + len(out) - 1) * hop + width]
            np.multiply(span[:-1], -table.emphasis, out=emphasised[1 : span.size])
            emphasised[1 : span.size] += span[1:]
            first = frames[:, 0] * ((1.0 - table.emphasis) * table.window[0])
            frames = emphasised_frames[: len(out)]
        np.multiply(frames, table.window, out=filled[:, :width])
        if table.emphasis:
            filled[:, 0] = first
        _log_power(filled, table, out)
    if table.span < np.inf:
        np.maximum(mels, mels.max() - table.span, out=mels)
    if (table.gain, table.offset) != (1.0, 0.0):
        mels *= table.gain
        mels += table.offset
    if cfg.floor:
        np.maximum(mels, cfg.floor, out=mels)
    return mels


@dataclasses.dataclass(frozen=True)
class Moments:
    """Number of mel frames and, for each band, their mean and summed squared distance from it.

    Moments of two parts add up in float64 to those of both (Chan, Golub and LeVeque 1979), and no
    two large sums are subtracted. The order of the parts shows in the last digits.
    """

    count: int = 0  # frames
    mean: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()  # summed over the frames

    @classmethod
    def from_frames(cls, mels: Float32[np.ndarray, "frames m"]) -> "Moments":
        """The moments of some frames."""
        if not len(mels):
            return cls()
        mean = mels.mean(axis=0, dtype=np.float64)
        squares = np.square(mels - mean).sum(axis=0)
        return cls(len(mels), tuple(mean.tolist()), tuple(squares.tolist()))

    def __add__(self, other: "Moments") -> "Moments":
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        mean, squares = np.array(self.mean), np.array(self.squares)
        distance = np.array(other.mean) - mean
        squares = squares + other.squares
        squares = squares + np.square(distance) * (self.count * other.count / count)
        mean = mean + distance * (other.count / count)
        return Moments(count, tuple(mean.tolist()), tuple(squares.tolist()))

    def constants(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and inverse standard deviation of each band, for Mel.mean and Mel.invstd."""
        if not self.count:
            raise Mistake("mel statistics of 0 frames: needs at least one clip of sound")
        variance = np.array(self.squares) / self.count
        return self.mean, tuple((1.0 / np.sqrt(variance + EPS)).tolist())


def band_statistics(
    mels: Iterable[Float32[np.ndarray, "_ m"]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and inverse standard deviation of each band over all frames, for Mel.mean, Mel.invstd.

    Reads `mels` once. Raises Mistake where there is no frame.
    """
    return sum(map(Moments.from_frames, mels), Moments()).constants()


def _frame_view(wave: np.ndarray, table: MelFilters) -> np.ndarray:
    """Every frame [frames width] of `wave`, as a view."""
    return np.lib.stride_tricks.sliding_window_view(wave, table.width)[:: table.hop]


def _log_power(windowed: np.ndarray, table: MelFilters, out: np.ndarray) -> None:
    """Natural log of the mel power of windowed frames [frames points], into out [frames m].

    Squares of real and imaginary parts lie side by side, and each row of the bank is repeated, so
    that one product adds the two (0.05 us a frame less than adding pairs first). Where magnitudes
    are weighed, there is one number a bin.
    """
    squares = scipy.fft.rfft(windowed, workers=1).view(np.float32)
    np.square(squares, out=squares)
    if table.power == 1:
        squares = squares[:, ::2] + squares[:, 1::2]
        np.sqrt(squares, out=squares)
    for bins, bands, weights in _band_groups(table):
        np.matmul(squares[:, bins], weights, out=out[:, bands])
    np.maximum(out, table.floor, out=out)
    np.log(out, out=out)


@functools.lru_cache(maxsize=16)
def _band_groups(table: MelFilters) -> list[tuple[slice, slice, np.ndarray]]:
    """The bank in groups of neighbouring bands: (squares read, bands written, weights).

    A triangle reads few of the bins: for 80 bands in 5 groups, a quarter of the whole product.
    """
    bank, groups, parts = table.bank, [], table.power  # numbers a bin: two squares, or one root
    for start in range(0, bank.shape[1], GROUP):
        part = bank[:, start : start + GROUP]
        read = np.flatnonzero(part.any(axis=1))
        low, high = (read[0], read[-1] + 1) if read.size else (0, 1)
        weights = np.repeat(part[low:high], parts, axis=0)
        read_bins = slice(parts * low, parts * high)
        groups.append((read_bins, slice(start, start + part.shape[1]), weights))
    return groups


@functools.lru_cache(maxsize=4)
def _global_statistics(cfg: Mel) -> tuple[np.ndarray, np.ndarray]:
    if not (cfg.mean and cfg.invstd):
        raise Mistake(
            f'mel.normalize="global": needs {cfg.m} values each in mel.mean and mel.invstd, '
            f"which have {len(cfg.mean)} and {len(cfg.invstd)}"
        )
    return np.array(cfg.mean, np.float32), np.array(cfg.invstd, np.float32)
