"""Runs of a law that is known, for the tests of what finds laws."""

import numpy as np

from launch.scaling.law import Law
from launch.scaling.points import Point

HOFFMANN = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # arXiv 2203.15556, equation 10
BESIROGLU = Law(E=1.817, A=482.0, B=2085.0, alpha=0.348, beta=0.366)  # arXiv 2404.10102


def grid(law, noise=0.003, outliers=0, seed=0, sizes=(5e7, 1.6e10, 8), budgets=(1e9, 5e11, 8)):
    """Points of every size with every number of tokens; `outliers` of them end 3 to 10 % above."""
    rng = np.random.default_rng(seed)
    n, d = (of.ravel() for of in np.meshgrid(np.geomspace(*sizes), np.geomspace(*budgets)))
    loss = law.loss(n, d) * np.exp(noise * rng.standard_normal(len(n)))
    loss[rng.choice(len(n), outliers, replace=False)] *= 1 + rng.uniform(0.03, 0.1, outliers)
    return points(n, d, loss)


def isoflop(law, budgets, spread, sizes=9, centre=1.0):
    """Points without noise at equal FLOPs: sizes from the best over `spread` to the best times it.

    `centre` moves the whole away from the best.
    """
    n = np.concatenate(
        [law.best(c, 6.0)[0] * centre * np.geomspace(1 / spread, spread, sizes) for c in budgets]
    )
    d = np.repeat(budgets, sizes) / (6 * n)
    return points(n, d, law.loss(n, d))


def points(n, d, loss):
    return [
        Point(float(n), float(d), float(loss), float(6 * n * d), f"run{i}")
        for i, (n, d, loss) in enumerate(zip(n, d, loss, strict=True))
    ]


def csv(points):
    """The text of a file of them."""
    rows = (f"{p.name},{p.params!r},{p.tokens!r},{p.loss!r}" for p in points)
    return "\n".join(["name,params,tokens,loss", *rows]) + "\n"
