"""Many robust fits of a law at once: the method of Levenberg and Marquardt with Huber's weights.

The objective is `parametric.objective`. A weight of 1 over the residual turns its square into its
size, as Huber's loss has it beyond delta, and no step is taken that does not lower the objective.
L-BFGS takes hundreds of steps a fit, one fit after another, where this takes tens for all.
"""

from jaxtyping import Float
import numpy as np

DELTA = 1e-3  # of Huber's loss, in log loss: beyond it, a point counts by distance, not its square
FLATTEST, STEEPEST = 0.01, 5.0  # bounds of alpha and beta: there, the points did not determine it
STEPS = 300  # at most
ENOUGH = 1e-7  # of the objective: a step that gains less, thrice, is the last


def searched(
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
    value, slopes, off = _seen(found, x, y, z)
    damping, idle = np.full(len(z), 1e-3), np.zeros(len(z), int)
    diagonal = np.arange(5)
    for _ in range(STEPS):
        weights = 1 / np.maximum(np.abs(off), 1)
        curving = np.einsum("snc,sn,snk->sck", slopes, weights, slopes)
        pull = np.einsum("snc,sn->sc", slopes, weights * off)
        scale = curving[:, diagonal, diagonal]
        curving[:, diagonal, diagonal] += damping[:, None] * scale + 1e-9 * scale.max()
        tried = np.clip(found - np.linalg.solve(curving, pull[..., None])[..., 0], low, high)
        there = _seen(tried, x, y, z)
        better = there[0] < value
        small = value - there[0] <= ENOUGH * value
        idle = np.where(small, idle + 1, 0)
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-12, 1e9)
        found[better], value[better] = tried[better], there[0][better]
        slopes[better], off[better] = there[1][better], there[2][better]
        if (idle >= 3).all():
            break
    return found


def _seen(
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
