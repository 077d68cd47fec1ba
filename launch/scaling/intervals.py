"""Intervals of fitted numbers: percentiles over bootstrap resamples of the points."""

from collections.abc import Iterator
import dataclasses

from jaxtyping import Float, Int
import numpy as np

LEAST = 3  # different sizes, and budgets, that a law takes: fewer leave E, A and alpha undetermined
SAME = 0.05  # sizes that differ by a smaller ratio are one: runs end at slightly other tokens
TRIES = 1000  # at drawing a resample that can be fitted

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A value with its 80 % and 95 % intervals, percentiles of the bootstrap."""

    value: float
    p80: Interval
    p95: Interval


def quantity(value: float, samples: Float[np.ndarray, " samples"]) -> Quantity:
    """`value` with intervals from `samples`, its values over resamples."""
    low, lower, upper, high = (float(x) for x in np.percentile(samples, (2.5, 10, 90, 97.5)))
    return Quantity(float(value), (lower, upper), (low, high))


def count_clusters(values: Float[np.ndarray, " points"]) -> int:
    """The number of clusters of `cluster_indices`."""
    return int(cluster_indices(values).max()) + 1


def cluster_indices(values: Float[np.ndarray, " points"]) -> Int[np.ndarray, " points"]:
    """The index of the cluster that each value lies in; clusters are numbered by ascending value.

    A value within a ratio of e^0.05 of its neighbour is in the same cluster.
    """
    order = np.argsort(values)
    apart = np.diff(np.log(values[order])) > SAME
    clusters = np.zeros(len(values), int)
    clusters[order] = np.concatenate([[0], np.cumsum(apart)])
    return clusters


def bootstrap_indices(
    n: Float[np.ndarray, " points"],
    d: Float[np.ndarray, " points"],
    count: int,
    rng: np.random.Generator,
) -> Iterator[Int[np.ndarray, " points"]]:
    """Indices of `count` resamples of the points, drawn with replacement.

    A resample with fewer than LEAST sizes or budgets is drawn anew; after TRIES draws it is all
    points.
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
