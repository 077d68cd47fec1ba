"""Runs whose tokens follow from their parameters determine no split, whatever their noise says."""

import dataclasses
import itertools

import numpy as np
import pytest

from launch.scaling.identifiability import CLEAR, design_line
from launch.scaling.law import Law
from launch.scaling.parametric_fit import DELTA
from launch.scaling.points import load_points
from tests.support.laws import BESIROGLU, HOFFMANN, grid, isoflop
from tests.support.paths import ROOT

N = 1e6 * 2.0 ** np.arange(10)
SEEDS = range(20)
UNLIKE = Law(E=1.8, A=200.0, B=3000.0, alpha=0.2, beta=0.6)


def line(n, d, noise, seed=0, law=BESIROGLU):
    """The line of runs of `law` with that noise, which a fit would find but for its freedom."""
    off = noise * np.random.default_rng(seed).standard_normal(len(n))
    return design_line(n, d, law.loss(n, d) * np.exp(off), off, constants=5)


def columns(points):
    return [np.array([getattr(p, name) for p in points]) for name in ("params", "tokens")]


@pytest.mark.parametrize("law", [BESIROGLU, HOFFMANN, UNLIKE])
@pytest.mark.parametrize("c,p", [(20, 1), (2e5, 0.5), (0.01, 1.4)])
def test_law_with_its_terms_exchanged_has_the_same_losses_on_a_line_and_another_split(law, c, p):
    other = dataclasses.replace(
        law,
        A=law.B * c**-law.beta,
        alpha=p * law.beta,
        B=law.A * c ** (law.alpha / p),
        beta=law.alpha / p,
    )
    assert other.loss(N, c * N**p) == pytest.approx(law.loss(N, c * N**p), rel=1e-12)
    assert abs(other.a - law.a) > 0.02


def test_laws_of_parameters_alone_and_of_tokens_alone_are_as_far_apart_as_it_says():
    """On the line both are N^-0.1; one that lies delta off it has exp(-0.05·delta) of the loss."""
    delta = np.tile([0.3, -0.1, -0.2, 0.0], 5)
    n = np.repeat(N[:5], 4)
    d = 7 * n**2 * np.exp(delta)
    by_n, by_d = n**-0.1, (d / 7) ** -0.05
    found = design_line(n, d, by_n, np.zeros(20), constants=5)
    assert (found.power, found.factor) == (pytest.approx(2), pytest.approx(7))
    assert found.spread == pytest.approx(np.sqrt((0.09 + 0.01 + 0.04) / 4))
    assert found.apart == pytest.approx(np.sqrt(np.mean(np.log(by_n / by_d) ** 2)))
    assert found.apart == pytest.approx(0.05 * found.spread)


def test_noise_hides_four_standard_errors_and_is_never_thought_less_than_the_fit_knows():
    off = np.tile([0.03, -0.03], 5)
    hidden = lambda off: design_line(N, 20 * N, N**-0.1, off, constants=5).hidden
    # Five of ten runs' freedom is left: 0.03 · √(10 / 5) is the noise, over √10 its mean's.
    assert hidden(off) == pytest.approx(CLEAR * 0.03 * np.sqrt(2 / 10))
    assert hidden(0 * off) == pytest.approx(CLEAR * DELTA / np.sqrt(10))


@pytest.mark.parametrize("noise", [0, 0.002, 0.02])
@pytest.mark.parametrize("c,p", [(20, 1), (2e5, 0.5), (0.01, 1.4)])
def test_runs_on_a_line_are_told_to_determine_nothing(c, p, noise):
    for law, runs, seed in itertools.product((BESIROGLU, HOFFMANN, UNLIKE), (1, 3), SEEDS):
        n = np.repeat(N, runs)
        reason = line(n, c * n**p, noise, seed, law).reason
        assert reason.startswith(f"tokens: are {c:.3g} · params^{p:.3g} to 0.00 %, a line in log")
        assert "a and the best split of a budget are undetermined" in reason
        # Tokens in whole batches are off the line by next to nothing.
        batch = 0.002 * c * n[0] ** p
        assert line(n, np.round(c * n**p / batch) * batch, noise, seed, law).reason


@pytest.mark.parametrize("noise", [0.002, 0.02, 0.5])
@pytest.mark.parametrize(
    "points",
    [
        grid(HOFFMANN),
        grid(BESIROGLU, sizes=(1e6, 1.6e7, 5), budgets=(2e7, 3.2e8, 5)),
        grid(HOFFMANN, sizes=(1e6, 4e6, 3), budgets=(2e7, 8e7, 3)),
        isoflop(HOFFMANN, np.geomspace(1e18, 1e21, 4), spread=4),
        isoflop(BESIROGLU, np.geomspace(1e18, 1e21, 4), spread=1.5),
        isoflop(BESIROGLU, [1e20], spread=4),  # a line, but one that does not rise
        load_points(str(ROOT / "benchmarks/results/synthetic/runs.csv")),
    ],
    ids=["grid", "small", "smallest", "isoflop", "near the best", "one budget", "measured"],
)
def test_runs_of_a_grid_or_of_equal_budgets_are_let_through(points, noise):
    """Where noise hides much, too: that is for the intervals to say."""
    n, d = columns(points)
    assert not any(line(n, d, noise, seed).reason for seed in SEEDS)


def test_runs_near_a_line_are_let_through_where_noise_does_not_hide_that():
    n = np.repeat(N, 2)
    d = n * np.tile([19, 21], 10)
    assert not any(line(n, d, 0.002, seed).reason for seed in SEEDS)
    assert all(line(n, d, 0.02, seed).reason for seed in SEEDS)
