"""Ticks are round, few, and inside their span."""

import pytest

from launch.charts.ticks import linear_ticks, log_ticks, round_step


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (1.4, 6.3, [2, 3, 4, 5, 6]),
        (0.9e5, 2.4e6, [1e5, 2e5, 5e5, 1e6, 2e6]),
        (0.5, 2000, [1, 10, 100, 1000]),
        (1e-3, 1e15, [1e-3, 1, 1e3, 1e6, 1e9, 1e12, 1e15]),
        (2.05, 2.34, [2.1, 2.2, 2.3]),
        (1.00001, 1.00002, [1.00001, 1.000012, 1.000014, 1.000016, 1.000018, 1.00002]),
    ],
)
def test_figures_of_a_log_axis_are_round_and_few(low, high, found):
    got = log_ticks(low, high)
    assert got == pytest.approx(found, rel=1e-7)


@pytest.mark.parametrize(
    ("least", "step"), [(0.0, 1.0), (0.9, 1), (1.0, 1), (1.01, 2), (2.5, 5), (5.1, 10), (0.3, 0.5)]
)
def test_step_is_the_next_round_number(least, step):
    assert round_step(least) == pytest.approx(step)


def test_linear_ticks_are_round_few_and_inside():
    assert linear_ticks(-31.0, 4.0) == [-30, -25, -20, -15, -10, -5, 0]
    assert linear_ticks(0.0, 0.3, most=3) == [0.0, 0.1, 0.2, 0.3]
    assert linear_ticks(0.0, 1.0, most=3, finest=1) == [0, 1]
    assert linear_ticks(2.0, 2.0) == [2.0]
