"""Approach 3 finds known constants, its gradient is right, and resamples find what it would."""

import numpy as np
import pytest
from scipy import optimize

from launch.scaling import parametric_fit
from launch.scaling.intervals import bootstrap_indices
from launch.scaling.parametric_fit import refit
from tests.support.laws import BESIROGLU, HOFFMANN, grid

NAMES = ("E", "A", "B", "alpha", "beta")


def arrays(points):
    return (np.array([getattr(p, name) for p in points]) for name in ("params", "tokens", "loss"))


def close(found, law, rel):
    return all(getattr(found, name) == pytest.approx(getattr(law, name), rel=rel) for name in NAMES)


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU])
def test_fit_of_losses_without_noise_finds_the_constants(law):
    assert close(parametric_fit.fit_parametric(*arrays(grid(law, noise=0))), law, rel=1e-5)
    few = grid(law, 0, sizes=(1e6, 1.6e7, 5), budgets=(2e7, 1.6e8, 4))
    assert close(parametric_fit.fit_parametric(*arrays(few)), law, rel=1e-4)


def test_fit_is_not_moved_by_outliers_as_least_squares_are():
    points = grid(HOFFMANN, noise=0.0005, outliers=6)
    n, d, loss = arrays(points)
    found = parametric_fit.fit_parametric(n, d, loss)
    assert close(found, HOFFMANN, rel=0.05)
    # The same five constants by least squares of log loss, from the truth: alpha is far off.
    off = lambda c: np.log(c[0] + c[1] * n ** -c[3] + c[2] * d ** -c[4]) - np.log(loss)
    start = [getattr(HOFFMANN, name) for name in NAMES]
    squares = optimize.least_squares(off, start, x_scale=start).x
    assert abs(squares[3] - 0.34) > 5 * abs(found.alpha - 0.34)


def test_objective_has_the_gradient_of_its_differences():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-2, 2, (2, 30))
    z = rng.normal(1, 0.2, 30)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        at = np.array([0.2, 0.1, -0.3, 0.4, 0.3]) + rng.normal(0, 0.1, 5)
        _, gradient = parametric_fit.objective(at, x, y, z)
        for place in range(5):
            step = 1e-7 * np.eye(5)[place]
            up, down = (parametric_fit.objective(at + sign * step, x, y, z)[0] for sign in (1, -1))
            assert gradient[place] == pytest.approx((up - down) / 2e-7, rel=1e-4, abs=1e-3)


def test_objective_is_hubers_loss_of_log_loss():
    # Two points that are off by half a delta and by ten of them: 0.125 and 9.5, in delta².
    at = np.log([1.0, 1.0, 1.0, np.e, np.e])  # E = A = B = 1, alpha = beta = 1
    zero = np.zeros(2)
    z = np.log(3.0) + parametric_fit.DELTA * np.array([0.5, -10.0])
    value, _ = parametric_fit.objective(at, zero, zero, z)
    assert value == pytest.approx((0.125 + 9.5) / 2, rel=1e-9)


def test_fit_finds_no_worse_an_end_than_the_papers_grid_of_starts():
    n, d, loss = arrays(grid(BESIROGLU, 0.004, 2, sizes=(1e6, 1.6e7, 5), budgets=(2e7, 1.6e8, 4)))
    x, y, z = (np.log(value) for value in (n, d, loss))
    value = lambda law: parametric_fit.objective(
        parametric_fit.constants(law, x.mean(), y.mean()), x - x.mean(), y - y.mean(), z
    )[0]
    found = value(parametric_fit.fit_parametric(n, d, loss))
    # A thinned grid of appendix D.3, in the paper's own constants: log E, log A, log B.
    raw = lambda c: parametric_fit.objective(np.array(c), x, y, z)
    ends = [
        optimize.minimize(raw, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).fun
        for start in ((0, 5, 10, 0.5, 0.5), (1, 5, 5, 0.5, 0.5), (-1, 15, 10, 1, 0.5))
    ]
    assert found <= min(ends) * (1 + 1e-9)


@pytest.mark.parametrize("noise", [0.0005, 0.005])
def test_refit_of_resamples_is_what_lbfgs_finds_for_each(noise):
    n, d, loss = arrays(grid(HOFFMANN, noise, sizes=(1e6, 1.6e7, 5), budgets=(2e7, 1.6e8, 5)))
    law = parametric_fit.fit_parametric(n, d, loss)
    picked = list(bootstrap_indices(n, d, 3, np.random.default_rng(0)))
    for again, one in zip(refit(law, n, d, loss, picked), picked, strict=True):
        alone = parametric_fit.fit_parametric(n[one], d[one], loss[one])
        assert again.alpha == pytest.approx(alone.alpha, abs=2e-3)
        assert again.beta == pytest.approx(alone.beta, abs=2e-3)
        assert again != law


def test_searches_from_far_off_end_no_worse_than_they_began():
    n, d, loss = arrays(grid(HOFFMANN, 0.003))
    x, y, z = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean(), np.log(loss)
    rng = np.random.default_rng(0)
    # Some of them beyond the bounds: E above the least loss, exponents above STEEPEST.
    starts = rng.uniform((-3, -3, -3, 0.001, 0.001), (1.5, 3, 3, 6, 6), (12, 5))
    ends = [parametric_fit.search(start, x, y, z) for start in starts]
    value = lambda found: parametric_fit.objective(found, x, y, z)[0]
    assert all(value(end) < value(start) for start, end in zip(starts, ends, strict=True))
    best = min(ends, key=value)
    assert np.mean([value(end) < value(best) * 1.001 for end in ends]) > 0.5
    assert best[3:] == pytest.approx((HOFFMANN.alpha, HOFFMANN.beta), abs=0.03)
