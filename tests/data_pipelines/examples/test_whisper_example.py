"""The windows that a Whisper hears of a sound."""

import numpy as np
import pytest

from data_pipelines.audio.log_mel import normalized_log_mel
from data_pipelines.audio.sound import Sound
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.whisper_example import (
    NO_TRANSCRIPT,
    WhisperExampleMaker,
    filled_windows,
    window_slices,
)
from data_pipelines.reject import Reject, Unusable
from data_pipelines.text.turns import CLIP, Turn
from melllm_jax.config.features import Mel

MEL, WINDOW = Mel("whisper", normalize="none"), 100
MAKE = WhisperExampleMaker(MEL, WINDOW)


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def windows(wave):
    example = MAKE.sound_example(Sound(wave, 16_000), "noise")
    return example, filled_windows(example, WINDOW)


@pytest.mark.parametrize("samples", [160, 5_000, 5_121, 15_400, 15_840, 16_000])
def test_a_window_is_the_mel_of_the_sound_with_its_silence(samples):
    wave = noise(samples)
    example, found = windows(wave)
    whole = normalized_log_mel(np.pad(wave, (0, 16_000 - samples)), MEL)
    assert len(example.columns["mels"]) <= samples // 160 + 4
    np.testing.assert_array_equal(found, whole[None])


def test_long_sound_is_cut_in_a_pause_and_each_piece_is_a_window_of_its_own():
    wave = noise(20_000)
    wave[9_600:16_000] = 0.0  # a pause from 0.6 s to 1 s
    (first, second) = window_slices(wave, 16_000)
    assert 9_600 + 2_400 <= first.stop <= 16_000 - 2_400
    assert (first.start, first.stop, second.stop) == (0, second.start, 20_000)
    example, found = windows(wave)
    assert example.duration == 1.25
    assert found.shape == (2, WINDOW, 80)
    for piece, mel in zip((first, second), found, strict=True):
        np.testing.assert_array_equal(mel, windows(wave[piece])[1][0])


def test_long_sound_without_pause_is_cut_every_window():
    assert window_slices(noise(35_000), 16_000) == (
        slice(0, 16_000),
        slice(16_000, 32_000),
        slice(32_000, 35_000),
    )


def test_sound_of_another_rate_is_brought_to_16_khz():
    example = MAKE.sound_example(Sound(noise(4_000), 8_000), "noise")
    assert example.duration == 0.5
    assert len(example.columns["mels"]) == 53


def test_what_is_no_transcription_or_no_sound_is_refused_by_reason():
    with pytest.raises(Unusable, match="noise: audio of 159 samples"):
        windows(noise(159))
    turns = (Turn("user", (CLIP, "How many?")), Turn("assistant", ("two",)))
    found = MAKE.eval_example(Utterance("one", "two", 1.0, "", turns=turns, task="count"))
    assert isinstance(found, Reject)
    assert (found.reason, found.id) == (NO_TRANSCRIPT, "one")
