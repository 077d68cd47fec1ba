"""The distribution of numbers: mean, quantiles, and the bars of a histogram."""

import dataclasses
import math

from jaxtyping import Float
import numpy as np

from launch.charts.ticks import round_step

BARS = 40  # at most
CHUNK = 1 << 20  # numbers sorted at a time, since their bar indices take twice their room
COVERED = 0.995  # share of the numbers that the bars cover; a long tail would flatten them


@dataclasses.dataclass(frozen=True)
class Distribution:
    """The distribution of some numbers, and how many they are."""

    of: int  # numbers
    mean: float
    low: float
    median: float
    p95: float  # 95 % are not above it
    high: float
    start: float  # lower edge of the first bar
    width: float  # of a bar
    counts: tuple[int, ...]  # numbers in each bar, from its lower edge up to the next one's
    beyond: int  # numbers above the last bar


def distribution(values: Float[np.ndarray, " n"]) -> Distribution | None:
    """The distribution of `values`, which are finite; None where there are none.

    Bars start at 0 unless a number is below it, and are 1, 2 or 5 times a power of ten wide.
    """
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    median, p95, covered = (float(x) for x in np.quantile(values, (0.5, 0.95, COVERED)))
    width = round_step((covered - min(low, 0.0)) / BARS)
    start = math.floor(min(low, 0.0) / width) * width
    bars = max(1, math.floor((covered - start) / width) + 1)
    # Edges are compared as they are written: 3 * 0.1 lies above 0.3.
    edges = np.round(start + width * np.arange(bars + 1), 9).astype(values.dtype)
    counts = np.zeros(bars + 1, np.int64)
    for first in range(0, values.size, CHUNK):
        bar_indices = np.searchsorted(edges[1:], values[first : first + CHUNK], side="right")
        counts += np.bincount(bar_indices, minlength=bars + 1)
    return Distribution(
        of=values.size,
        mean=float(values.mean(dtype=np.float64)),
        low=low,
        median=median,
        p95=p95,
        high=high,
        start=start,
        width=width,
        counts=tuple(counts[:-1].tolist()),
        beyond=int(counts[-1]),
    )
