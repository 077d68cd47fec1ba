"""Approach 2 finds the minima of parabolas, and says how far off a parabola itself is."""

import dataclasses

import numpy as np
import pytest

from launch.scaling import isoflop as approach
from launch.scaling.law import Law
from tests.support.laws import BESIROGLU, HOFFMANN, grid, isoflop

STEEP = Law(E=1.8, A=200.0, B=3000.0, alpha=0.3, beta=0.45)
BUDGETS = np.geomspace(1e18, 1e21, 4)


def found(points, law, noise=0.0, resamples=40):
    n, d, flops, loss = (
        np.array([getattr(p, name) for p in points])
        for name in ("params", "tokens", "flops", "loss")
    )
    rng = np.random.default_rng(0)
    draws = [noise * rng.standard_normal(len(n)) for _ in range(resamples)]
    return approach.fit_isoflop(n, d, flops, loss, law, 6.0, draws)


def test_isoflop_of_a_symmetric_law_finds_its_exponent_and_no_bias():
    law = dataclasses.replace(HOFFMANN, alpha=0.3, beta=0.3, A=400.0, B=400.0)
    got = found(isoflop(law, BUDGETS, spread=4), law)
    assert got.refused == "" and got.warnings == ()
    assert got.optimal["a"].value == pytest.approx(0.5, abs=1e-6)
    assert [group.best for group in got.groups] == pytest.approx(
        [law.best(c, 6.0)[0] for c in BUDGETS], rel=1e-6
    )
    assert [group.bias for group in got.groups] == pytest.approx([0] * 4, abs=1e-6)


def test_isoflop_of_unlike_exponents_far_around_the_best_is_told_to_be_biased():
    got = found(isoflop(STEEP, BUDGETS, spread=16), STEEP)
    # What it says of its own bias is what it is: there is no noise.
    true = np.array([STEEP.best(c, 6.0)[0] for c in BUDGETS])
    off = np.array([group.best for group in got.groups]) / true - 1
    assert np.abs(off).min() > 0.05
    assert [group.bias for group in got.groups] == pytest.approx(off, rel=1e-6)
    assert any("biased" in word and f"{100 * off[0]:+.1f} %" in word for word in got.warnings)


def test_isoflop_of_unlike_exponents_near_the_best_is_less_biased():
    far, near = (found(isoflop(STEEP, BUDGETS, spread), STEEP) for spread in (16, 1.5))
    assert abs(near.groups[0].bias) < 0.05 * abs(far.groups[0].bias)
    assert not any("biased" in word for word in near.warnings)


def test_isoflop_drifting_off_centre_tilts_the_exponent_by_as_much_as_it_says():
    drifting = [
        point
        for c, centre in zip(BUDGETS, (0.4, 0.8, 1.6, 3.2), strict=True)
        for point in isoflop(STEEP, [c], spread=8, centre=centre)
    ]
    got = found(drifting, STEEP)
    assert abs(got.tilt) > 0.01 and any("biased" in word for word in got.warnings)
    assert got.optimal["a"].value - STEEP.a == pytest.approx(got.tilt, abs=1e-9)


def test_isoflop_minimum_beyond_the_sizes_is_left_out_and_told():
    inside = isoflop(HOFFMANN, BUDGETS[:3], spread=4)
    outside = isoflop(HOFFMANN, BUDGETS[3:], spread=4, centre=20.0)
    got = found(inside + outside, HOFFMANN)
    assert [group.best is None for group in got.groups] == [False] * 3 + [True]
    assert "approach 2: the minimum lies beyond the sizes: left out: at 1e+21 FLOPs" in got.warnings
    assert got.optimal["a"].value == pytest.approx(HOFFMANN.a, abs=0.01)


def test_isoflop_curved_downwards_and_lopsided_and_few_are_told():
    points = isoflop(HOFFMANN, BUDGETS[:2], spread=4, sizes=5)
    points += isoflop(HOFFMANN, BUDGETS[2:3], spread=4, sizes=4)
    points += isoflop(HOFFMANN, BUDGETS[3:], spread=2, sizes=5, centre=1.9)
    bent = isoflop(HOFFMANN, [1e23], spread=4, sizes=5)
    bent = [dataclasses.replace(point, loss=5 - point.loss) for point in bent]
    words = found(points + bent, HOFFMANN).warnings
    assert "approach 2: the parabola has no minimum: left out: at 1e+23 FLOPs" in words
    assert "approach 2: a side of the minimum has fewer than 2 sizes: at 1e+21 FLOPs" in words
    assert "approach 2: fewer than 5 sizes: at 1e+20 FLOPs" in words


def test_isoflop_of_a_grid_moves_runs_of_about_a_budget_to_it():
    # Sizes and tokens grow by unlike ratios, so that budgets are met to a few percent only.
    points = grid(BESIROGLU, 0, sizes=(1e8, 3.2e9, 6), budgets=(3e9, 1.5e11, 6))
    got = found(points, BESIROGLU)
    for group in got.groups:
        n = np.array([points[index].params for index in group.members])
        exact = BESIROGLU.loss(n, group.flops / (6 * n))
        assert list(group.moved) == pytest.approx(exact, rel=2e-3)
    assert got.optimal["a"].value == pytest.approx(BESIROGLU.a, abs=0.02)


def test_isoflop_without_equal_budgets_or_minima_says_why():
    rng = np.random.default_rng(0)
    lone = [p for c in BUDGETS for p in isoflop(HOFFMANN, [c], spread=rng.uniform(1, 9), sizes=2)]
    assert "no 3 sizes share a budget" in found(lone, HOFFMANN).refused
    off = isoflop(HOFFMANN, BUDGETS, spread=2, centre=30.0)
    got = found(off, HOFFMANN)
    assert got.refused.startswith("0 of 4 budgets have a minimum") and got.optimal == {}


def test_power_laws_of_n_and_d_spend_the_budget_and_their_intervals_mirror_each_other():
    # N = 0.5·C^0.4 at 8 FLOPs a parameter and token leaves D = C / (8·N) = 0.25·C^0.6.
    samples = np.column_stack([np.linspace(0.3, 0.5, 41), np.log(np.linspace(0.4, 0.6, 41))])
    got = approach.power_laws(np.array([0.4, np.log(0.5)]), samples, 8.0)
    values = {name: one.value for name, one in got.items()}
    expected = {"a": 0.4, "b": 0.6, "n_coefficient": 0.5, "d_coefficient": 0.25}
    assert values == pytest.approx(expected)
    assert got["n_coefficient"].p95 == pytest.approx((0.405, 0.595))
    assert got["d_coefficient"].p95 == pytest.approx((1 / 8 / 0.595, 1 / 8 / 0.405), rel=1e-3)
    assert (got["a"].p80, got["b"].p80) == (
        pytest.approx((0.32, 0.48)),
        pytest.approx((0.52, 0.68)),
    )


def test_isoflop_interval_widens_with_the_noise():
    points = isoflop(HOFFMANN, BUDGETS, spread=4)
    wide, narrow = (
        got.optimal["a"].p95[1] - got.optimal["a"].p95[0]
        for got in (found(points, HOFFMANN, noise) for noise in (0.004, 0.001))
    )
    assert wide > 2 * narrow > 0
