import numpy as np
import pytest

from launch.charts.distribution import distribution


def test_spread_tells_the_figures_of_numbers():
    found = distribution(np.array([1.0, 2.0, 3.0, 4.0, 10.0]))
    assert (found.of, found.mean, found.low, found.median, found.high) == (5, 4.0, 1.0, 3.0, 10.0)
    assert found.p95 == pytest.approx(8.8)


def test_spread_bars_hold_every_number_once_and_begin_at_round_edges():
    values = np.random.default_rng(0).gamma(4.0, 3.0, 10_000)
    found = distribution(values)
    assert sum(found.counts) + found.beyond == found.of == 10_000
    assert found.start == 0 and found.width in (0.5, 1.0)
    for place, count in enumerate(found.counts):
        low, high = place * found.width, (place + 1) * found.width
        assert count == ((values >= low) & (values < high)).sum()
    assert 0 < found.beyond <= 50  # the longest half percent


def test_spread_of_a_number_on_an_edge_counts_it_above_the_edge():
    found = distribution(np.array([0.1, 0.2, 0.3, 0.3, 3.9], np.float64))
    assert found.width == 0.1
    assert found.counts[1:4] == (1, 1, 2)


def test_spread_of_negative_numbers_begins_below_them():
    found = distribution(np.array([-40.0, -33.0, -20.0]))
    assert found.start <= -40 and sum(found.counts) + found.beyond == 3


def test_spread_of_one_number_and_of_zeros_and_of_none():
    assert sum(distribution(np.array([7.5])).counts) == 1
    assert distribution(np.zeros(3)).counts == (3,)
    assert distribution(np.array([])) is None
