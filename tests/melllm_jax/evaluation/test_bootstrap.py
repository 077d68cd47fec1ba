"""Intervals by resampling: of a rate whose spread is known, and of differences that are certain."""

import numpy as np
import pytest

from melllm_jax.errors import Mistake
from melllm_jax.evaluation.bootstrap import mean_interval, paired_difference, wer_interval

RNG = np.random.default_rng(0)
WORDS = RNG.integers(5, 20, 400)
ERRORS = RNG.binomial(WORDS, 0.2)


def test_interval_is_that_of_the_ratio_estimator():
    """Its standard error over utterances, by the delta method (Cochran 1977, 2.34)."""
    found = wer_interval(ERRORS, WORDS)
    rate = ERRORS.sum() / WORDS.sum()
    error = np.std(ERRORS - rate * WORDS, ddof=1) / WORDS.mean() / np.sqrt(len(WORDS))
    assert found.low == pytest.approx(rate - 1.96 * error, abs=0.05 * error)
    assert found.high == pytest.approx(rate + 1.96 * error, abs=0.05 * error)


def test_interval_is_the_same_each_time_and_another_by_seed():
    assert wer_interval(ERRORS, WORDS, resamples=100) == wer_interval(ERRORS, WORDS, resamples=100)
    assert wer_interval(ERRORS, WORDS, resamples=100, seed=1) != wer_interval(
        ERRORS, WORDS, resamples=100
    )


def test_utterances_without_a_word_change_nothing():
    errors, words = np.array([*ERRORS, 0, 3]), np.array([*WORDS, 0, 0])
    assert wer_interval(errors, words) == wer_interval(ERRORS, WORDS)
    assert paired_difference(errors, np.array([*ERRORS, 0, 0]), words).utterances == len(WORDS)


def test_difference_is_drawn_in_pairs():
    """One error less in every utterance: whatever is drawn, it is as much better."""
    words = np.full(50, 10)
    errors = RNG.integers(1, 9, 50)
    found = paired_difference(errors - 1, errors, words)
    assert (found.difference, found.below) == (-0.1, 1.0)
    assert (found.low, found.high) == (pytest.approx(-0.1), pytest.approx(-0.1))
    same = paired_difference(errors, errors, words)
    assert (same.difference, same.low, same.high, same.below) == (0.0, 0.0, 0.0, 0.0)


def test_difference_that_is_chance_is_better_in_half_of_the_draws():
    """Two changes of equal size, one for better and one for worse: each is drawn as often."""
    others = np.ones(30, int)
    errors = others.copy()
    errors[:2] += [1, -1]
    found = paired_difference(errors, others, np.full(30, 3), resamples=20_000)
    assert found.difference == 0.0
    ties = 1 - found.below - paired_difference(others, errors, np.full(30, 3)).below
    assert found.below == pytest.approx((1 - ties) / 2, abs=0.01)


def test_interval_of_a_mean_is_that_of_its_standard_error():
    values = RNG.normal(4, 0.5, 400)
    found = mean_interval(values)
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.05 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.05 * error)
    assert mean_interval(values, resamples=9) != mean_interval(values, resamples=9, seed=1)
    one = mean_interval(np.array([3.5]))
    assert (one.low, one.high) == (3.5, 3.5)
    with pytest.raises(Mistake, match="none of 0 utterances has a score"):
        mean_interval(np.zeros(0))


def test_nothing_but_silence_is_refused():
    with pytest.raises(Mistake, match="none of 2 references has a word"):
        wer_interval(np.zeros(2, int), np.zeros(2, int))
