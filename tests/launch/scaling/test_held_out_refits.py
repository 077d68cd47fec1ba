"""Intervals hold what a law that is only nearly right gets wrong beyond its runs."""

import dataclasses

import numpy as np
import pytest

from launch.scaling import law_json
from launch.scaling.held_out_refits import Widening, measure_widening
from launch.scaling.intervals import Quantity
from launch.scaling.law import LARGEST
from launch.scaling.law_fit import fit_law
from launch.scaling.prediction import predict_loss
from tests.support.laws import HOFFMANN, grid, points

SMALL = {"sizes": (1e6, 1.6e7, 5), "budgets": (2e7, 3.2e8, 5)}
KNOWN = Widening("by hand", 7, 0.01, 0.02, 1.5, 2.0, largest=(1e6, 1e8, 1e13))


def kaplan(seed, uneven=False):
    """Runs of another law, Kaplan et al. 2020 (arXiv 2001.08361), equation 1.5, and noise.

    `uneven` noise is Student's, with three degrees of freedom, and larger in small runs.
    """
    rng = np.random.default_rng(seed)
    n, d = (of.ravel() for of in np.meshgrid(np.geomspace(1e6, 1e9, 7), np.geomspace(2e7, 2e10, 7)))
    noise = 0.001 * rng.standard_normal(len(n))
    if uneven:
        noise = 0.001 * rng.standard_t(3, len(n)) * (n.max() / n) ** 0.1
    loss = ((6.4e13 / n) ** (0.076 / 0.103) + 1.8e13 / d) ** 0.103
    return points(n, d, loss * np.exp(noise))


def held(runs, share):
    """For each of the largest runs, whether it is inside its 95 % by the law of the others.

    With the intervals widened, and without.
    """
    ordered = sorted(runs, key=lambda point: point.flops)
    apart = round(share * len(runs))
    fit = fit_law(ordered[:-apart], 0, 10)
    inside = []
    for point in ordered[-apart:]:
        for known in (fit, dataclasses.replace(fit, widening=None)):
            low, high = predict_loss(known, point.params, point.tokens).p95
            inside.append(low <= point.loss <= high)
    return np.reshape(inside, (apart, 2))


@pytest.mark.parametrize("uneven", [pytest.param(False, marks=pytest.mark.slow), True])
def test_largest_runs_of_another_law_lie_in_their_intervals_where_these_are_widened(uneven):
    runs = kaplan(1, uneven)
    widened, bare = np.concatenate([held(runs, share) for share in (0.1, 0.2, 0.3)]).mean(axis=0)
    assert widened >= 0.9
    assert bare < 0.6


def test_width_grows_by_the_logs_of_what_lies_beyond_the_largest():
    assert KNOWN.half_widths(1e5, 1e7) == pytest.approx((0.015, 0.02))
    # Twice the parameters, but no more tokens and no more compute.
    assert KNOWN.half_widths(2e6, 5e6)[1] == pytest.approx(0.02 + 2 * 0.02 * np.log(2))
    # The most parameters and tokens together are ten times the compute of the largest run.
    assert KNOWN.half_widths(1e6, 1e8)[0] == pytest.approx(0.015 + 1.5 * 0.02 * np.log(10))
    assert KNOWN.half_widths(2e6, 1e8)[0] == pytest.approx(0.015 + 1.5 * 0.02 * np.log(2 * 20))


def test_interval_is_never_narrower_than_it_was():
    wide = Quantity(2.0, (1.0, 2.001), (0.9, 3.0))
    found = KNOWN.widen(wide, 1e5, 1e7)
    assert found.value == 2.0
    assert found.p80 == (1.0, pytest.approx(2 * np.exp(0.015)))
    assert found.p95 == (0.9, 3.0)
    assert np.isfinite(dataclasses.replace(KNOWN, beyond=9.0).widen(wide, 1e38, 1e38).p95).all()


def test_law_that_is_right_is_widened_by_its_noise_alone_among_its_runs():
    for noise in (0.001, 0.01):
        fit = fit_law(grid(HOFFMANN, noise), 0, 5)
        half = fit.widening.half_widths(1e9, 1e10)
        # 1.28 and 1.96 deviations, and what folds add; rank 61 of 64 and more is known to a fifth.
        assert half == pytest.approx((1.28 * noise, 1.96 * noise), rel=0.35)


def test_widening_is_the_same_for_a_seed_and_none_of_too_few_runs():
    runs = grid(HOFFMANN, 0.003, **SMALL)
    n, d, loss = np.array([(p.params, p.tokens, p.loss) for p in runs]).T
    one, same, other = (measure_widening(HOFFMANN, n, d, loss, seed) for seed in (0, 0, 1))
    assert one == same != other
    assert one.largest == (n.max(), d.max(), (n * d).max())
    few = slice(None, None, 4)  # seven runs, of which six have fewer than three sizes
    assert measure_widening(HOFFMANN, n[few][:6], d[few][:6], loss[few][:6], 0) is None


def test_law_file_keeps_the_widening_and_one_of_before_has_none(tmp_path):
    fit = fit_law(grid(HOFFMANN, 0.003, **SMALL), 0, 5)
    text = law_json.to_json(fit, "runs.csv")
    path = tmp_path / "law.json"
    path.write_text(text)
    assert law_json.read(str(path)).widening == fit.widening
    assert "cross-conformal" in fit.widening.method
    start = text.index('"widening"')
    path.write_text(text[:start] + '"older' + text[start + 1 :])
    known = law_json.read(str(path))
    assert known.widening is None
    assert predict_loss(known, 1e9, 1e10).value == predict_loss(fit, 1e9, 1e10).value


def test_half_widths_far_from_all_runs_do_not_overflow():
    far = dataclasses.replace(KNOWN, beyond=1e3)
    assert far.half_widths(1e30, 1e30) == (LARGEST, LARGEST)
