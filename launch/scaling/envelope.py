"""Approach 1: the best size of any budget, by the lower envelope of loss over FLOPs.

Hoffmann et al. 2022 (arXiv 2203.15556), section 3.1. There, each size has the curve of one long
run; here, it has that through the ends of its runs, whose learning rate has fallen by then and
whose loss is held out.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float
import numpy as np

from launch.scaling.intervals import Quantity, cluster_indices
from launch.scaling.isoflop import power_laws

BUDGETS = 200  # along the envelope; the paper's 1,500 would add nothing, since sizes are few
SIZES = 3  # with a curve that it takes: the best needs a smaller and a larger one beside it
LEAST_SHARE = 0.5  # of the resamples that must have an envelope
NONE = "nowhere is the least loss of a size that has both a smaller and a larger one beside it"

Vector = Float[np.ndarray, " points"]


@dataclasses.dataclass(frozen=True)
class Envelope:
    """Which size is best at which budgets; without `power_laws`, why there is none."""

    refused: str
    flops: tuple[float, ...]  # budgets at which a size is best that is not the outermost there
    params: tuple[float, ...]  # that size
    optimal: dict[str, Quantity]  # a, b, n_coefficient, d_coefficient


def fit_envelope(
    n: Vector, flops: Vector, loss: Vector, per: float, draws: Sequence[Vector]
) -> Envelope:
    """The power law of the best size, with intervals.

    Each of `draws` is noise, residuals of log loss, that is added to the measured losses for a
    resample. The intervals are too wide rather than too narrow; resampled runs would leave most
    sizes without a curve.
    """
    size_indices = cluster_indices(n)
    budgets_by_size = [flops[size_indices == size] for size in range(size_indices.max() + 1)]
    if sum(budgets.max() > budgets.min() for budgets in budgets_by_size) < SIZES:
        return Envelope(f"fewer than {SIZES} sizes have runs of two budgets", (), (), {})
    best = _best(n, flops, loss)
    if best is None:
        return Envelope(NONE, (), (), {})
    budgets, sizes = (tuple(map(float, values)) for values in best)
    resampled = (_best(n, flops, loss * np.exp(noise)) for noise in draws)
    samples = np.array([_power(*one) for one in resampled if one is not None])
    if len(samples) < LEAST_SHARE * len(draws):
        why = f"only {len(samples)} of {len(draws)} resamples have an envelope over two sizes"
        return Envelope(why, budgets, sizes, {})
    return Envelope("", budgets, sizes, power_laws(_power(*best), samples, per))


def _best(n: Vector, flops: Vector, loss: Vector) -> tuple[Vector, Vector] | None:
    """Budgets and the best sizes there; None where fewer than two sizes are ever best.

    A size counts between its smallest and its largest run. Where the best of those that count is
    the smallest or the largest, a better one may be missing, so the budget is left out.
    """
    size_indices = cluster_indices(n)
    grid = np.geomspace(flops.min(), flops.max(), BUDGETS)
    curves, sizes = [], []
    for size in range(size_indices.max() + 1):
        runs = size_indices == size
        order = np.argsort(flops[runs])
        x, y = np.log(flops[runs][order]), np.log(loss[runs][order])
        if x[-1] > x[0]:
            curves.append(np.interp(np.log(grid), x, y, left=np.inf, right=np.inf))
            sizes.append(np.exp(np.log(n[runs]).mean()))
    losses = np.stack(curves)
    known = np.isfinite(losses)
    best = losses.argmin(axis=0)
    first, last = known.argmax(axis=0), len(sizes) - 1 - known[::-1].argmax(axis=0)
    inner = known.any(axis=0) & (first < best) & (best < last)
    if len(set(best[inner])) < 2:
        return None
    return grid[inner], np.array(sizes)[best[inner]]


def _power(flops: Vector, n: Vector) -> Float[np.ndarray, "2"]:
    return np.polyfit(np.log(flops), np.log(n), 1)
