"""Approach 2: the best size of each of several budgets, by parabolas of loss over log N.

Hoffmann et al. 2022 (arXiv 2203.15556), section 3.2. A parabola is the loss's Taylor series cut
short, so that even of losses without noise its minimum is off wherever alpha and beta differ, the
sizes reach far to either side, or further to one (Czech et al. 2026, arXiv 2603.22339). How much it
is off here is computed by the same parabolas on the losses of approach 3's law, which has a known
minimum.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float, Int
import numpy as np

from launch.scaling.intervals import Quantity, cluster_indices, quantity
from launch.scaling.law import Law

WINDOW = 1.35  # runs whose FLOPs differ by no more than this ratio are of one budget
SIZES = 3  # a budget needs: a parabola has three coefficients
FEW = 5  # sizes, below which a parabola says little about how sure it is
BIASED = 0.05  # of N at a budget, beyond which a warning tells the parabola's bias
TILTED = 0.01  # of the exponent, likewise
LEAST_SHARE = 0.5  # of the resamples that must have two minima or more

Vector = Float[np.ndarray, " points"]


@dataclasses.dataclass(frozen=True)
class IsoflopGroup:
    """The runs of one budget and the parabola through them."""

    flops: float  # geometric mean
    members: tuple[int, ...]  # indices of points
    moved: tuple[float, ...]  # their losses, moved along the law to exactly `flops`
    curve: tuple[float, float, float]  # loss over log N - middle: square, linear, constant
    middle: float  # mean of log N
    best: float | None  # N of the minimum; None where there is none among the sizes
    loss: float | None  # at the minimum
    bias: float | None  # of `best` by the parabola itself, as a share of N; None without a minimum


@dataclasses.dataclass(frozen=True)
class Isoflop:
    """The groups and their power laws; without power laws, `refused` says why there are none."""

    refused: str
    groups: tuple[IsoflopGroup, ...]
    optimal: dict[str, Quantity]  # a, b, n_coefficient, d_coefficient
    tilt: float | None  # bias of a by the parabolas themselves
    warnings: tuple[str, ...]


def fit_isoflop(
    n: Vector, d: Vector, flops: Vector, loss: Vector, law: Law, per: float, draws: Sequence[Vector]
) -> Isoflop:
    """The best size of each budget, and its power law with intervals.

    `law` is approach 3's of the same points, `per` its FLOPs a parameter and token. Each of `draws`
    is noise, residuals of log loss, that stands around the parabolas in a resample: groups are too
    small to resample their points.
    """
    groups = [_group(n, d, flops, loss, law, per, members) for members in _budgets(n, flops)]
    if not groups:
        return Isoflop(
            f"no {SIZES} sizes share a budget of FLOPs to a ratio of {WINDOW}", (), {}, None, ()
        )
    warnings = _doubts(groups, n)
    usable = [group for group in groups if group.best is not None]
    if len(usable) < 2:
        why = (
            f"{len(usable)} of {len(groups)} budgets have a minimum among their sizes: 2 are needed"
        )
        return Isoflop(why, tuple(groups), {}, None, tuple(warnings))
    budgets = np.array([group.flops for group in usable])
    best = np.array([group.best for group in usable])
    line = _power(budgets, best)
    samples = np.array(
        [one for noise in draws if (one := _refit_with_noise(usable, n, noise)) is not None]
    )
    if len(samples) < LEAST_SHARE * len(draws):
        why = f"only {len(samples)} of {len(draws)} resamples have two minima among their sizes"
        return Isoflop(why, tuple(groups), {}, None, tuple(warnings))
    unbiased = np.array([1 + (group.bias or 0.0) for group in usable])
    tilt = line[0] - _power(budgets, best / unbiased)[0]
    if any(abs(group.bias or 0.0) > BIASED for group in usable) or abs(tilt) > TILTED:
        worst = max((group.bias or 0.0 for group in usable), key=abs)
        warnings.append(
            f"approach 2 is biased: on losses of the fitted law without noise its parabolas miss "
            f"the best N by up to {100 * worst:+.1f} % and its exponent by {tilt:+.3f}"
        )
    return Isoflop("", tuple(groups), power_laws(line, samples, per), tilt, tuple(warnings))


def power_laws(
    line: Float[np.ndarray, "2"], samples: Float[np.ndarray, "samples 2"], per: float
) -> dict[str, Quantity]:
    """The power laws N = n_coefficient · C^a and D = C / (per · N) = d_coefficient · C^b."""
    d_line, d_samples = -np.log(per) - line[1], -np.log(per) - samples[:, 1]
    return {
        "a": quantity(line[0], samples[:, 0]),
        "b": quantity(1 - line[0], 1 - samples[:, 0]),
        "n_coefficient": quantity(np.exp(line[1]), np.exp(samples[:, 1])),
        "d_coefficient": quantity(np.exp(d_line), np.exp(d_samples)),
    }


def _power(flops: Vector, n: Vector) -> Float[np.ndarray, "2"]:
    """Exponent, and logarithm of the coefficient, of N over C: a line through logarithms."""
    return np.polyfit(np.log(flops), np.log(n), 1)


def _budgets(n: Vector, flops: Vector) -> list[Int[np.ndarray, " members"]]:
    """Indices of the runs of each budget that has enough sizes, from the smallest budget up."""
    sizes, remaining = cluster_indices(n), list(np.argsort(flops, kind="stable"))
    budgets = []
    while remaining:
        inside = [index for index in remaining if flops[index] <= WINDOW * flops[remaining[0]]]
        remaining = remaining[len(inside) :]
        if len(set(sizes[inside])) >= SIZES:
            budgets.append(np.array(sorted(inside, key=lambda index: n[index])))
    return budgets


def _group(
    n: Vector,
    d: Vector,
    flops: Vector,
    loss: Vector,
    law: Law,
    per: float,
    members: Int[np.ndarray, " members"],
) -> IsoflopGroup:
    """The group of the runs at the indices `members`."""
    budget = float(np.exp(np.log(flops[members]).mean()))
    x = np.log(n[members])
    # Runs of about a budget come to it along the law: its slope matters, not its height.
    exact = law.loss(n[members], d[members] * budget / flops[members])
    moved = loss[members] + exact - law.loss(n[members], d[members])
    curve, best = _parabola(x, moved)
    true, bias = law.best(budget, per)[0], None
    if best is not None:
        # The law at that budget, along which D = C / (per · N): the minimum is `true`.
        path = law.loss(n[members], budget / (per * n[members]))
        inferred = _parabola(x, path, inside=False)[1]
        bias = None if inferred is None else float(np.exp(inferred) / true - 1)
    return IsoflopGroup(
        flops=budget,
        members=tuple(int(index) for index in members),
        moved=tuple(float(value) for value in moved),
        curve=curve,
        middle=float(x.mean()),
        best=None if best is None else float(np.exp(best)),
        loss=None if best is None else float(np.polyval(curve, best - x.mean())),
        bias=bias,
    )


def _parabola(
    x: Vector, loss: Vector, inside: bool = True
) -> tuple[tuple[float, float, float], float | None]:
    """Coefficients over x less its mean, and x of the minimum.

    The minimum is None where the parabola has none; with `inside`, also where it lies beyond the
    sizes.
    """
    square, linear, constant = (float(c) for c in np.polyfit(x - x.mean(), loss, 2))
    best = x.mean() - linear / (2 * square) if square > 0 else None
    if inside and best is not None and not x.min() <= best <= x.max():
        best = None
    return (square, linear, constant), best


def _refit_with_noise(
    groups: Sequence[IsoflopGroup], n: Vector, noise: Vector
) -> Float[np.ndarray, "2"] | None:
    """The power law with new noise around the parabolas; None with fewer than two minima."""
    budgets, best = [], []
    for group in groups:
        members = list(group.members)
        x = np.log(n[members])
        curve = np.polyval(group.curve, x - group.middle)
        minimum = _parabola(x, curve * np.exp(noise[members]))[1]
        if minimum is not None:
            budgets.append(group.flops)
            best.append(np.exp(minimum))
    return _power(np.array(budgets), np.array(best)) if len(best) > 1 else None


def _doubts(groups: Sequence[IsoflopGroup], n: Vector) -> list[str]:
    """Warnings of what makes the minima doubtful, and at which budgets."""
    flat: list[IsoflopGroup] = []
    outside: list[IsoflopGroup] = []
    lopsided: list[IsoflopGroup] = []
    few: list[IsoflopGroup] = []
    for group in groups:
        sizes = np.unique(n[list(group.members)])
        if group.best is None:
            (flat if group.curve[0] <= 0 else outside).append(group)
        elif min((sizes < group.best).sum(), (sizes > group.best).sum()) < 2:
            lopsided.append(group)
        elif len(sizes) < FEW:
            few.append(group)
    reasons = (
        (flat, "the parabola has no minimum: left out"),
        (outside, "the minimum lies beyond the sizes: left out"),
        (lopsided, "a side of the minimum has fewer than 2 sizes"),
        (few, f"fewer than {FEW} sizes"),
    )
    return [
        f"approach 2: {reason}: at {', '.join(f'{group.flops:.2g}' for group in which)} FLOPs"
        for which, reason in reasons
        if which
    ]
