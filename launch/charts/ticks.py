"""Round numbers at the axes of charts: 1, 2 or 5 times a power of ten."""

import math


def round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not less; 1 where `least` is 0."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * (1 - 1e-9))


def linear_ticks(low: float, high: float, most: int = 7, finest: float = 0.0) -> list[float]:
    """Round numbers from `low` to `high` at equal distances of `finest` or more.

    There are at most `most` distances; where `high` is not above `low`, the one tick is `low`.
    """
    if high <= low:
        return [low]
    step = max(round_step((high - low) / most), finest)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{step * index:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high` for a log axis: powers of 10, or finer where few are."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first) / most)
    fine, coarse = (1, 2, 3, 4, 5, 6, 8), (1,)
    for digits, apart in ((fine, 1), ((1, 2, 5), 1), ((1, 3), 1), (coarse, 1), (coarse, every)):
        candidates = (x * 10.0**power for power in range(first, last + 1, apart) for x in digits)
        inside = [float(f"{value:.12g}") for value in candidates if low <= value <= high]
        if 3 <= len(inside) <= most:
            return inside
    return linear_ticks(low, high, most=5) if high < 30 * low else inside
