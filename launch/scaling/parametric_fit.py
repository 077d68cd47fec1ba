"""Approach 3: the constants of L = E + A/N^alpha + B/D^beta by a robust fit of log loss.

Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and appendix D.3, minimise the sum of Huber's
loss with delta 1e-3 of the difference of log losses, by L-BFGS from a grid of starts. This module
minimises the same sum by SciPy's `least_squares(loss="huber")`, whose cost it is when residuals are
given in units of delta. What differs, and why:

L-BFGS with SciPy's default tolerances stops early, as the paper's own fit did (Besiroglu et al.
2024, arXiv 2404.10102): the sum is flat along a valley in which A and alpha trade off. Sizes
therefore enter as distances from their mean logarithm, and a search takes 5 to 30 steps of a trust
region in place of hundreds. The grid is one of alpha and beta alone; E, A and B of each start are
the linear least squares for that pair (variable projection, as in arXiv 2603.22339). Only the best
`SEARCHED` starts are searched: on 320 data sets the other 56 never ended lower.
"""

from collections.abc import Sequence
import itertools

from jaxtyping import Float, Int
import numpy as np
from scipy import optimize

from launch.scaling.law import Law

DELTA = 1e-3  # of Huber's loss, in log loss: beyond it, a point counts by distance, not its square
FLATTEST, STEEPEST = 0.01, 5.0  # bounds of alpha and beta: there, the points did not determine it
EXPONENTS = (0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3, 2.0)  # of the starts
SEARCHED = 8  # of the 64 starts, those where the objective is lowest

Vector = Float[np.ndarray, " points"]
Constants = Float[np.ndarray, "5"]  # log E, log A/mean(N)^alpha, log B/mean(D)^beta, alpha, beta


def fit_parametric(n: Vector, d: Vector, loss: Vector) -> Law:
    """The law of points with `n` parameters, `d` tokens and `loss` nats a token."""
    x, y, z = np.log(n), np.log(d), np.log(loss)
    middle = float(x.mean()), float(y.mean())
    x, y = x - middle[0], y - middle[1]
    height = lambda at: objective(at, x, y, z)[0]
    starts = sorted(_starts(x, y, loss), key=height)[:SEARCHED]
    return law_from_constants(
        min((search(start, x, y, z) for start in starts), key=height), *middle
    )


def refit(
    law: Law, n: Vector, d: Vector, loss: Vector, resamples: Sequence[Int[np.ndarray, " points"]]
) -> tuple[Law, ...]:
    """The law of each resample, searched from the constants of `law`, that of all points.

    A resample is the indices of its points.
    """
    x, y, z = np.log(n), np.log(d), np.log(loss)
    middle = float(x.mean()), float(y.mean())
    x, y = x - middle[0], y - middle[1]
    start = constants(law, *middle)
    return tuple(
        law_from_constants(search(start, x[one], y[one], z[one]), *middle) for one in resamples
    )


def search(start: Constants, x: Vector, y: Vector, z: Vector) -> Constants:
    """The constants of least objective that a search from `start` reaches.

    `x` and `y` are log N and log D less a mean, `z` is log loss. A start outside the bounds is
    moved to the nearest constants inside.
    """
    low = np.array([*[z.min() - 20] * 3, FLATTEST, FLATTEST])
    high = np.array([z.min(), z.max() + 5, z.max() + 5, STEEPEST, STEEPEST])
    # Of SciPy's methods "dogbox" is a third faster, but stuck once in 320 searches of whole grids.
    end = optimize.least_squares(
        _residuals,
        np.clip(start, low, high),
        jac=_derivatives,
        bounds=(low, high),
        loss="huber",
        x_scale="jac",
        args=(x, y, z),
    )
    return np.asarray(end.x)


def objective(
    at: Constants, x: Vector, y: Vector, z: Vector
) -> tuple[float, Float[np.ndarray, "5"]]:
    """Mean of Huber's loss over delta², and its gradient; arguments as those of `search`."""
    off = _residuals(at, x, y, z)
    value = np.where(np.abs(off) <= 1, off**2 / 2, np.abs(off) - 0.5).mean()
    return float(value), np.clip(off, -1, 1) @ _derivatives(at, x, y, z) / len(x)


def constants(law: Law, x: float, y: float) -> Constants:
    """A law's constants as they are searched; `x` and `y` are the mean log N and log D."""
    a, b = np.log(law.A) - law.alpha * x, np.log(law.B) - law.beta * y
    return np.array([np.log(law.E), a, b, law.alpha, law.beta])


def law_from_constants(at: Constants, x: float, y: float) -> Law:
    """The law that has these `constants`."""
    e, a, b, alpha, beta = (float(value) for value in at)
    return Law(
        E=float(np.exp(e)),
        A=float(np.exp(a + alpha * x)),
        B=float(np.exp(b + beta * y)),
        alpha=alpha,
        beta=beta,
    )


def _residuals(at: Constants, x: Vector, y: Vector, z: Vector) -> Vector:
    """Log loss of the law less that of each point, in units of delta."""
    return (np.log(_terms(at, x, y).sum(axis=0)) - z) / DELTA


def _derivatives(at: Constants, x: Vector, y: Vector, z: Vector) -> Float[np.ndarray, "points 5"]:
    terms = _terms(at, x, y)
    shares = terms / terms.sum(axis=0)
    return np.stack([*shares, -shares[1] * x, -shares[2] * y], axis=1) / DELTA


def _terms(at: Constants, x: Vector, y: Vector) -> Float[np.ndarray, "3 points"]:
    """E, A/N^alpha and B/D^beta of each point; bounded constants cannot overflow them."""
    e, a, b, alpha, beta = at
    return np.exp(np.stack([np.full_like(x, e), a - alpha * x, b - beta * y]))


def _starts(x: Vector, y: Vector, loss: Vector) -> Float[np.ndarray, "starts 5"]:
    """A grid of alpha and beta, with E, A and B that are positive."""
    least = 1e-6 * loss.min()
    starts = []
    for alpha, beta in itertools.product(EXPONENTS, repeat=2):
        columns = np.stack([np.ones_like(x), np.exp(-alpha * x), np.exp(-beta * y)], axis=1)
        # Over the loss, so that residuals are those of log loss to first order.
        weights, _ = optimize.nnls(columns / loss[:, None], np.ones_like(loss))
        e, a, b = np.log(np.clip(weights, least, None))
        starts.append((min(e, np.log(loss.min())), a, b, alpha, beta))
    return np.array(starts)
