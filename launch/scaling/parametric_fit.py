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

from collections.abc import Sequence
import itertools

from jaxtyping import Float, Int
import numpy as np
from scipy import optimize

from launch.scaling.law import Law

EXPONENTS = (0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3, 2.0)  # of the starts

Vector = Float[np.ndarray, " points"]
Constants = Float[np.ndarray, "5"]  # log E, log A/mean(N)^alpha, log B/mean(D)^beta, alpha, beta


def fit_parametric(n: Vector, d: Vector, loss: Vector) -> Law:
    """The law of points with `n` parameters, `d` tokens and `loss` nats a token."""
    x, y, z = np.log(n), np.log(d), np.log(loss)
    middle = float(x.mean()), float(y.mean())
    x, y = x - middle[0], y - middle[1]
    starts = _starts(x, y, loss)
    ends = search(starts, *(np.tile(values, (len(starts), 1)) for values in (x, y, z)))
    best = min(ends, key=lambda end: objective(end, x, y, z)[0])
    last = _polish(best, x, y, z)
    return law_from_constants(min(best, last, key=lambda end: objective(end, x, y, z)[0]), *middle)


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


def _polish(start: Constants, x: Vector, y: Vector, z: Vector) -> Constants:
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


def law_from_constants(found: Constants, x: float, y: float) -> Law:
    """The law that has these `constants`."""
    e, a, b, alpha, beta = (float(value) for value in found)
    return Law(
        E=float(np.exp(e)),
        A=float(np.exp(a + alpha * x)),
        B=float(np.exp(b + beta * y)),
        alpha=alpha,
        beta=beta,
    )


DELTA = 1e-3  # of Huber's loss, in log loss: beyond it, a point counts by distance, not its square
FLATTEST, STEEPEST = 0.01, 5.0  # bounds of alpha and beta: there, the points did not determine it
STEPS = 300  # at most
ENOUGH = 1e-7  # of the objective: a step that gains less, thrice, is the last


def search(
    starts: Float[np.ndarray, "s 5"],
    x: Float[np.ndarray, "s points"],
    y: Float[np.ndarray, "s points"],
    z: Float[np.ndarray, "s points"],
) -> Float[np.ndarray, "s 5"]:
    """The constants that each search ends at; a row is a search with points of its own.

    `x` and `y` are log N and log D less a mean, `z` is log loss; constants as in `parametric`.
    """
    low = np.stack([*[z.min(axis=1) - 20] * 3, *[np.full(len(z), FLATTEST)] * 2], axis=1)
    high = np.stack(
        [z.min(axis=1), *[z.max(axis=1) + 5] * 2, *[np.full(len(z), STEEPEST)] * 2], axis=1
    )
    found = np.clip(starts, low, high)
    value, slopes, off = _evaluate(found, x, y, z)
    damping, idle = np.full(len(z), 1e-3), np.zeros(len(z), int)
    diagonal = np.arange(5)
    for _ in range(STEPS):
        weights = 1 / np.maximum(np.abs(off), 1)
        curving = np.einsum("snc,sn,snk->sck", slopes, weights, slopes)
        pull = np.einsum("snc,sn->sc", slopes, weights * off)
        scale = curving[:, diagonal, diagonal]
        curving[:, diagonal, diagonal] += damping[:, None] * scale + 1e-9 * scale.max()
        tried = np.clip(found - np.linalg.solve(curving, pull[..., None])[..., 0], low, high)
        there = _evaluate(tried, x, y, z)
        better = there[0] < value
        small = value - there[0] <= ENOUGH * value
        idle = np.where(small, idle + 1, 0)
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-12, 1e9)
        found[better], value[better] = tried[better], there[0][better]
        slopes[better], off[better] = there[1][better], there[2][better]
        if (idle >= 3).all():
            break
    return found


def _evaluate(
    found: Float[np.ndarray, "s 5"],
    x: Float[np.ndarray, "s points"],
    y: Float[np.ndarray, "s points"],
    z: Float[np.ndarray, "s points"],
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, "s points 5"], Float[np.ndarray, "s points"]]:
    """The objective, derivatives of each residual over delta, and the residuals over delta."""
    e, a, b, alpha, beta = found.T[..., None]
    terms = np.exp(np.stack([np.broadcast_to(e, x.shape), a - alpha * x, b - beta * y]))
    whole = terms.sum(axis=0)
    shares = terms / whole
    off = (np.log(whole) - z) / DELTA
    away = np.abs(off)
    value = np.where(away <= 1, off**2 / 2, away - 0.5).mean(axis=1)
    slopes = np.stack([*shares, -shares[1] * x, -shares[2] * y], axis=-1) / DELTA
    return value, slopes, off


BLOCK = 2_000_000  # points of resamples at a time: 80 MB of derivatives


def refit(
    law: Law,
    n: Float[np.ndarray, " points"],
    d: Float[np.ndarray, " points"],
    loss: Float[np.ndarray, " points"],
    picked: Sequence[Int[np.ndarray, " points"]],
) -> tuple[Law, ...]:
    """The law of the points of each of `picked`, indices; `law` is that of all."""
    x, y, z = np.log(n), np.log(d), np.log(loss)
    middle = float(x.mean()), float(y.mean())
    start = constants(law, *middle)
    size = max(1, BLOCK // len(n))
    found: list[Law] = []
    for first in range(0, len(picked), size):
        which = np.array(picked[first : first + size])
        starts = np.tile(start, (len(which), 1))
        ends = search(starts, x[which] - middle[0], y[which] - middle[1], z[which])
        found += [law_from_constants(end, *middle) for end in ends]
    return tuple(found)
