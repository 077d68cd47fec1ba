"""Approach 3: the constants of L = E + A/N^alpha + B/D^beta by a robust fit of log loss.

Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and appendix D.3: Huber's loss with delta 1e-3
of the logarithm of the loss, L-BFGS from a grid of starts. What differs, and why:

The objective is divided by delta², and the search ends by gradient: that of small means is so flat
that SciPy's defaults stop early, as those of the paper did (Besiroglu et al. 2024, arXiv
2404.10102). Sizes enter as distances from their mean logarithm, since A and alpha otherwise trade
off along a valley that L-BFGS crawls. The grid is one of alpha and beta; E, A and B of each start
are its linear least squares (variable projection, as in arXiv 2603.22339). All starts are searched
at once (`damped`), and L-BFGS ends what came out best.
"""

import itertools

from jaxtyping import Float
import numpy as np
from scipy import optimize

from launch.damped import DELTA, FLATTEST, STEEPEST, searched
from launch.law import Law

EXPONENTS = (0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3, 2.0)  # of the starts

Vector = Float[np.ndarray, " points"]
Constants = Float[np.ndarray, "5"]  # log E, log A/mean(N)^alpha, log B/mean(D)^beta, alpha, beta


def fit(n: Vector, d: Vector, loss: Vector) -> Law:
    """The law of points with `n` parameters, `d` tokens and `loss` nats a token."""
    x, y, z = np.log(n), np.log(d), np.log(loss)
    middle = float(x.mean()), float(y.mean())
    x, y = x - middle[0], y - middle[1]
    starts = _starts(x, y, loss)
    ends = searched(starts, *(np.tile(values, (len(starts), 1)) for values in (x, y, z)))
    best = min(ends, key=lambda end: objective(end, x, y, z)[0])
    last = _polished(best, x, y, z)
    return law_of(min(best, last, key=lambda end: objective(end, x, y, z)[0]), *middle)


def objective(
    found: Constants, x: Vector, y: Vector, z: Vector
) -> tuple[float, Float[np.ndarray, "5"]]:
    """Mean of Huber's loss over delta², and its gradient.

    `x` and `y` are log N and log D less their means, `z` is log loss.
    """
    e, a, b, alpha, beta = found
    terms = np.stack([np.full_like(x, e), a - alpha * x, b - beta * y])
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    whole = shares.sum(axis=0)
    off = (top + np.log(whole) - z) / DELTA
    value = np.where(np.abs(off) <= 1, off**2 / 2, np.abs(off) - 0.5).mean()
    pull = np.clip(off, -1, 1) * shares / whole / (DELTA * len(x))
    e_, a_, b_ = pull.sum(axis=1)
    return float(value), np.array([e_, a_, b_, -(pull[1] @ x), -(pull[2] @ y)])


def _polished(start: Constants, x: Vector, y: Vector, z: Vector) -> Constants:
    low, high = z.min(), z.max()
    end = optimize.minimize(
        objective,
        start,
        args=(x, y, z),
        jac=True,
        method="L-BFGS-B",
        bounds=[(low - 20, low), (low - 20, high + 5), (low - 20, high + 5)]
        + [(FLATTEST, STEEPEST)] * 2,
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-8},
    )
    return np.asarray(end.x)


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


def constants(law: Law, x: float, y: float) -> Constants:
    """A law's constants as they are searched; `x` and `y` are the mean log N and log D."""
    a, b = np.log(law.A) - law.alpha * x, np.log(law.B) - law.beta * y
    return np.array([np.log(law.E), a, b, law.alpha, law.beta])


def law_of(found: Constants, x: float, y: float) -> Law:
    """The law that has these `constants`."""
    e, a, b, alpha, beta = (float(value) for value in found)
    return Law(
        E=float(np.exp(e)),
        A=float(np.exp(a + alpha * x)),
        B=float(np.exp(b + beta * y)),
        alpha=alpha,
        beta=beta,
    )
