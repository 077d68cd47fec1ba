"""Widens the interval of a predicted loss by how far refits are off on runs held out of them.

Resamples of the runs know the noise of the law's constants, and residuals that of a run. Neither
knows that the law itself is only nearly right, which shows where it is taken beyond its runs. So
the law is fitted anew without some of the runs, whose losses it then predicts: without a tenth, in
turn, drawn by a seed, and without the runs of most parameters, of most tokens and of most compute
N·D, a tenth to six tenths of them. The errors of log loss are compared after division by what is
usual at their distance, and their 80 % and 95 % quantiles become half-widths. This is
cross-conformal prediction (Vovk 2015, Annals of Mathematics and Artificial Intelligence 74; of K
folds: Barber et al. 2021, arXiv 1905.02928) with errors over a scale of their own, as in the
locally varying bands of Lei et al. 2018 (arXiv 1604.04173). That the scale grows linearly with the
distance, what the distance is and which shares are kept are ours. Runs beyond others are not
exchangeable with them, so that no theorem gives the coverage.
"""

from collections.abc import Iterator
import dataclasses
import math

from jaxtyping import Float, Int
import numpy as np
from scipy import optimize

from launch.scaling.intervals import LEAST, Interval, Quantity, count_clusters
from launch.scaling.law import LARGEST, Law
from launch.scaling.parametric_fit import refit

METHOD = "cross-conformal by refits without a tenth of the runs and without the largest"
FOLDS = 10
KEPT = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # shares of the runs that remain without the largest
LEVELS = (0.8, 0.95)
EXACT = 1e-9  # of log loss: the least error that is usual, for runs without noise

Vector = Float[np.ndarray, " points"]


@dataclasses.dataclass(frozen=True)
class Widening:
    """Half-widths of the intervals of a predicted log loss, by the distance from the runs."""

    method: str
    refits: int
    inside: float  # error of log loss that is usual among the runs
    beyond: float  # what it grows by for each factor e beyond them
    q80: float  # times the usual error: the 80 % interval
    q95: float
    largest: tuple[float, float, float]  # parameters, tokens, and their product, of all runs

    def half_widths(self, n: float, d: float) -> tuple[float, float]:
        """Of the 80 % and the 95 % interval of log loss, of a run of `n` parameters, `d` tokens.

        At most LARGEST: far from all runs a loss would overflow.
        """
        usual = self.inside + self.beyond * _distance(np.array([n, d, n * d]), self.largest)
        return min(self.q80 * float(usual), LARGEST), min(self.q95 * float(usual), LARGEST)

    def widen(self, loss: Quantity, n: float, d: float) -> Quantity:
        """The loss of a run with intervals that are at least so wide, and as wide as they were."""
        p80, p95 = (
            _around(loss.value, interval, half)
            for interval, half in zip((loss.p80, loss.p95), self.half_widths(n, d), strict=True)
        )
        return Quantity(loss.value, p80, p95)


def measure_widening(law: Law, n: Vector, d: Vector, loss: Vector, seed: int) -> Widening | None:
    """The widening that refits of `law`, that of all runs, show; None with too few runs for one."""
    sizes = np.stack([n, d, n * d])
    kept = [runs for runs in _kept(sizes, seed) if _determine(n[runs], d[runs], law)]
    errors, distances = [], []
    for runs, one in zip(kept, refit(law, n, d, loss, kept), strict=True):
        out = np.setdiff1d(np.arange(len(n)), runs)
        errors.append(np.abs(np.log(loss[out] / one.loss(n[out], d[out]))))
        distances.append(_distance(sizes[:, out], sizes[:, runs].max(axis=1)))
    if not errors:
        return None
    error, distance = np.concatenate(errors), np.concatenate(distances)
    columns = np.stack([np.ones_like(distance), distance], axis=1)
    (inside, beyond), _ = optimize.nnls(columns, error)
    inside = max(float(inside), EXACT)
    ratios = np.sort(error / (inside + beyond * distance))
    # The quantile of so many scores and that of the new run, which may be the largest.
    ranks = (min(len(ratios), math.ceil((len(ratios) + 1) * level)) - 1 for level in LEVELS)
    q80, q95 = (float(ratios[rank]) for rank in ranks)
    params, tokens, product = (float(most) for most in sizes.max(axis=1))
    largest = (params, tokens, product)
    return Widening(METHOD, len(kept), inside, float(beyond), q80, q95, largest)


def _kept(sizes: Float[np.ndarray, "3 points"], seed: int) -> Iterator[Int[np.ndarray, " kept"]]:
    """Indices of the runs that each refit keeps."""
    count = sizes.shape[1]
    order = np.random.default_rng(seed).permutation(count)
    for fold in range(min(FOLDS, count)):
        yield np.sort(np.delete(order, np.s_[fold::FOLDS]))
    for values in sizes:
        ascending = np.argsort(values, kind="stable")
        for share in KEPT:
            if (most := round(share * count)) < count:
                yield np.sort(ascending[:most])


def _determine(n: Vector, d: Vector, law: Law) -> bool:
    """Whether so many runs can be fitted by more points than the law has constants."""
    constants = len(dataclasses.fields(law))
    return len(n) > constants and min(count_clusters(n), count_clusters(d)) >= LEAST


def _distance(
    sizes: Float[np.ndarray, "3 *points"], largest: tuple[float, float, float] | Vector
) -> Float[np.ndarray, "*points"]:
    """How far parameters, tokens and their product lie beyond the largest: logs, summed.

    0 for a run below all three.
    """
    beyond = np.log(sizes.T / np.asarray(largest))
    return np.asarray(np.maximum(beyond, 0.0).sum(axis=-1))


def _around(value: float, interval: Interval, half: float) -> Interval:
    factor = math.exp(half)
    return min(interval[0], value / factor), max(interval[1], value * factor)
