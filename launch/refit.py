"""Approach 3 on resamples of the points, each searched from the constants of the whole."""

from collections.abc import Sequence

from jaxtyping import Float, Int
import numpy as np

from launch.damped import searched
from launch.law import Law
from launch.parametric import constants, law_of

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
        ends = searched(starts, x[which] - middle[0], y[which] - middle[1], z[which])
        found += [law_of(end, *middle) for end in ends]
    return tuple(found)
