import numpy as np
import pytest

from data_pipelines.audio import loudness, pauses


def test_decibels_of_known_sounds():
    time = np.arange(16_000) / 16_000
    sine = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    square = np.sign(sine + 1e-9).astype(np.float32)
    assert loudness.decibels(square) == pytest.approx(0.0, abs=0.01)
    assert loudness.decibels(sine) == pytest.approx(-3.01, abs=0.01)
    assert loudness.decibels(sine * 0.1 + 0.5) == pytest.approx(-23.01, abs=0.01)
    assert loudness.decibels(np.zeros(10, np.float32)) == -120.0
    assert loudness.decibels(np.full(10, 0.3, np.float32)) == -120.0


def test_levels_of_parts_add_up_to_percentiles_of_the_whole():
    levels = np.random.default_rng(0).normal(-30, 5, 5001).astype(np.float32)
    found = loudness.level_summary(
        loudness.level_histogram(levels[:700]) + loudness.level_histogram(levels[700:])
    )
    assert found["mean"] == pytest.approx(levels.mean(), abs=0.06)
    for percent in loudness.PERCENTILES:
        assert found[f"p{percent}"] == pytest.approx(np.percentile(levels, percent), abs=0.15)


def speech(*parts):
    """Noise as loud as said, for so many seconds each."""
    rng = np.random.default_rng(0)
    noise = [level * rng.standard_normal(int(16_000 * seconds)) for level, seconds in parts]
    return np.concatenate(noise).astype(np.float32)


def test_pieces_are_cut_in_the_middle_of_silence_and_are_all_of_the_sound():
    wave = speech((0.1, 2), (1e-4, 0.4), (0.1, 2), (1e-4, 0.4), (0.1, 2))
    found = pauses.split_at_pauses(wave, 3.0)
    assert [piece.start for piece in found] == [0, *(piece.stop for piece in found[:-1])]
    assert found[-1].stop == wave.size
    cuts = [piece.stop / 16_000 for piece in found[:-1]]
    assert cuts == pytest.approx([2.2, 4.6], abs=0.06)


def test_pieces_are_as_long_as_the_pauses_let_them():
    wave = speech(*[(0.1, 0.6), (1e-4, 0.4)] * 6)
    assert len(pauses.split_at_pauses(wave, 3.0)) == 3
    assert max(piece.stop - piece.start for piece in pauses.split_at_pauses(wave, 3.0)) <= 48_000


def test_sound_without_a_pause_has_no_pieces():
    assert pauses.split_at_pauses(speech((0.1, 5)), 3.0) == ()
    assert pauses.split_at_pauses(speech((0.1, 2), (1e-4, 0.2), (0.1, 2)), 3.0) == ()


def test_short_sound_is_one_piece():
    wave = speech((0.1, 2))
    assert pauses.split_at_pauses(wave, 3.0) == (slice(0, wave.size),)
