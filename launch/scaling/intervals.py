"""A number that was fitted, with its intervals: percentiles over resamples of the points."""

from collections.abc import Iterator
import dataclasses

from jaxtyping import Float, Int
import numpy as np

LEAST = 3  # different sizes and budgets, below which E, A and alpha cannot be told apart
ALIKE = 0.05  # sizes nearer to each other, by ratio, are one: runs end at slightly other tokens
TRIES = 1000  # at a resample that can be fitted

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A value and where it lies with 80 and 95 %: percentiles of the bootstrap."""

    value: float
    p80: Interval
    p95: Interval


def quantity(value: float, samples: Float[np.ndarray, " samples"]) -> Quantity:
    """`value` with the intervals of its resampled `samples`."""
    low, lower, upper, high = (float(x) for x in np.percentile(samples, (2.5, 10, 90, 97.5)))
    return Quantity(float(value), (lower, upper), (low, high))


def count_clusters(values: Float[np.ndarray, " points"]) -> int:
    """How many different sizes there are."""
    return int(cluster_indices(values).max()) + 1


def cluster_indices(values: Float[np.ndarray, " points"]) -> Int[np.ndarray, " points"]:
    """Number of the size that each value is of, from the smallest, 0, up."""
    order = np.argsort(values)
    apart = np.diff(np.log(values[order])) > ALIKE
    numbers = np.zeros(len(values), int)
    numbers[order] = np.concatenate([[0], np.cumsum(apart)])
    return numbers


def bootstrap_indices(
    n: Float[np.ndarray, " points"],
    d: Float[np.ndarray, " points"],
    count: int,
    rng: np.random.Generator,
) -> Iterator[Int[np.ndarray, " points"]]:
    """`count` resamples of the points, with replacement: their indices.

    One that lacks the sizes or budgets that a law takes is drawn anew.
    """
    sizes, budgets = cluster_indices(n), cluster_indices(d)
    for _ in range(count):
        for _ in range(TRIES):
            picked = rng.integers(len(n), size=len(n))
            if min(len(set(sizes[picked])), len(set(budgets[picked]))) >= LEAST:
                break
        else:
            picked = np.arange(len(n))
        yield picked
