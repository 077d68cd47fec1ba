"""Approach 1 finds the size that is best at each budget, and leaves out what it cannot know."""

import numpy as np
import pytest

from launch.scaling.envelope import fit_envelope
from tests.support.laws import HOFFMANN, grid

FINE = {"sizes": (1e7, 1e10, 25), "budgets": (1e8, 1e12, 25)}


def found(points, noise=0.0):
    n, flops, loss = (
        np.array([getattr(p, name) for p in points]) for name in ("params", "flops", "loss")
    )
    rng = np.random.default_rng(0)
    return fit_envelope(
        n, flops, loss, 6.0, [noise * rng.standard_normal(len(n)) for _ in range(40)]
    )


def test_envelope_of_many_sizes_finds_the_exponents():
    got = found(grid(HOFFMANN, 0, **FINE))
    assert got.refused == ""
    assert got.optimal["a"].value == pytest.approx(HOFFMANN.a, abs=0.02)
    assert got.optimal["b"].value == pytest.approx(1 - got.optimal["a"].value)
    best = np.array([HOFFMANN.best(c, 6.0)[0] for c in got.flops])
    apart = (1e10 / 1e7) ** (1 / 24)  # from one size to the next
    assert (np.abs(np.log(np.array(got.params) / best)) < 1.1 * np.log(apart)).all()


def test_envelope_leaves_out_budgets_where_an_outermost_size_is_best():
    got = found(grid(HOFFMANN, 0, **FINE))
    assert min(got.params) > 1e7 and max(got.params) < 1e10


def test_envelope_of_too_few_sizes_says_why():
    got = found(grid(HOFFMANN, 0, sizes=(1e9, 2e9, 2)))
    assert got.refused == "fewer than 3 sizes have runs of two budgets"
    assert got.optimal == {} and got.flops == ()
    one = found(grid(HOFFMANN, 0, budgets=(2e10, 2e10, 1)))  # of each size
    assert one.refused == "fewer than 3 sizes have runs of two budgets"


def test_envelope_of_sizes_that_are_all_too_large_says_why():
    got = found(grid(HOFFMANN, 0, sizes=(1e11, 1e12, 6), budgets=(1e8, 1e10, 6)))
    assert got.refused.startswith("nowhere is the least loss") and got.optimal == {}


def test_envelope_interval_holds_the_exponent_and_widens_with_noise():
    points = grid(HOFFMANN, 0.002, **FINE)
    quiet, loud = (found(points, noise).optimal["a"] for noise in (0.0005, 0.005))
    assert loud.p95[0] < quiet.p95[0] < quiet.p95[1] < loud.p95[1]
    assert loud.p95[0] < HOFFMANN.a < loud.p95[1]
