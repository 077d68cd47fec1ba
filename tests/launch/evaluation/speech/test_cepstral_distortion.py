"""Distortion in decibels: of cepstra whose distance is known, of noise, and along the time."""

import itertools

import numpy as np
import pytest

from launch.evaluation.speech.cepstral_distortion import (
    CEPSTRA,
    MEL,
    align,
    mel_cepstra,
    mel_cepstral_distortion,
)

RNG = np.random.default_rng(0)
TIME = np.arange(16_000) / 16_000
VOWEL = sum(np.sin(2 * np.pi * 120 * k * TIME) / k for k in range(1, 30)).astype(np.float32) / 8


def test_cepstra_are_the_amplitudes_of_cosines_in_the_log_spectrum():
    angles = (np.arange(MEL.m) + 0.5) * np.pi / MEL.m
    waves = {3: 0.5, CEPSTRA: -0.25, CEPSTRA + 1: 2.0}  # the last is above those that count
    log_amplitude = 7 + sum(c * np.cos(k * angles) for k, c in waves.items())
    found = mel_cepstra(2 * log_amplitude[None])
    expected = np.zeros((1, CEPSTRA))
    expected[0, [2, CEPSTRA - 1]] = 0.5, -0.25
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_distortion_of_a_tilted_spectrum_is_the_root_mean_square_in_decibels():
    """Neighbouring samples added: 20·log10|1 + a·e^(-iw)| dB, with its mean over mel taken off.

    A pulse in every frame, so that all frames are alike and time is not warped.
    """
    pulses = np.zeros(16_000, np.float32)
    pulses[::160] = 0.9
    tilted = pulses + 0.7 * np.append(0, pulses[:-1]).astype(np.float32)
    mels = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), MEL.m + 2)[1:-1]
    hertz = np.where(mels < 15, mels / 15, 6.4 ** ((mels - 15) / 27)) * 1000
    decibels = 20 * np.log10(np.abs(1 + 0.7 * np.exp(-2j * np.pi * hertz / 16_000)))
    found = mel_cepstral_distortion(tilted, pulses)
    assert found == pytest.approx(decibels.std(), rel=0.02)


def test_equal_sounds_have_none_and_noise_makes_it_grow():
    noise = RNG.normal(0, 1, VOWEL.size).astype(np.float32)
    found = [mel_cepstral_distortion(VOWEL + a * noise, VOWEL) for a in (0, 1e-3, 1e-2, 0.1)]
    assert found[0] == 0
    assert 0.5 < found[1] < found[2] < found[3] < 30
    assert mel_cepstral_distortion(0.5 * VOWEL, VOWEL) == pytest.approx(0, abs=1e-3)
    assert mel_cepstral_distortion(0 * VOWEL, VOWEL) > 5


def test_one_that_speaks_slower_is_as_near():
    parts = [VOWEL[:8_000], RNG.normal(0, 0.1, 8_000).astype(np.float32)]
    said = np.concatenate(parts)
    slower = np.concatenate([parts[0], parts[0], parts[1]])
    assert mel_cepstral_distortion(slower, said) < 1
    assert mel_cepstral_distortion(said[::-1].copy(), said) > 5


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (4, 5), (5, 4)])
def test_no_path_costs_less_than_the_one_that_is_found(shape):
    costs = RNG.random(shape)
    rows, columns = align(costs)
    steps = {*zip(np.diff(rows).tolist(), np.diff(columns).tolist(), strict=True)}
    assert steps <= {(0, 1), (1, 0), (1, 1)}
    assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, shape[0] - 1, shape[1] - 1)
    assert costs[rows, columns].sum() == pytest.approx(_least(costs))


def _least(costs):
    """The least sum over all paths, each of them walked."""
    t, s = costs.shape
    best = np.inf
    for length in range(max(t, s) - 1, t + s - 1):
        for steps in itertools.product(((0, 1), (1, 0), (1, 1)), repeat=length):
            places = np.cumsum([(0, 0), *steps], axis=0)
            if tuple(places[-1]) == (t - 1, s - 1):
                best = min(best, costs[places[:, 0], places[:, 1]].sum())
    return best
