"""Griffin-Lim: sound whose mel is the one given, for every kind."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.audio.log_mel import extract_log_mel, normalized_log_mel
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.vocoders.griffin_lim import griffin_lim

KINDS = [Mel(), Mel("whisper"), Mel("plain"), Mel("speecht5"), Mel("vocos", m=100)]


def voiced(rate):
    """Half a second of a gliding tone with harmonics that falls silent and comes back."""
    seconds = np.arange(rate // 2) / rate
    phase = 2 * np.pi * (120 * seconds + 60 * seconds**2)
    tone = sum(np.sin(k * phase) / k for k in range(1, 20))
    noise = 0.01 * np.random.default_rng(0).standard_normal(seconds.size)
    return (0.1 * tone * np.cos(9 * seconds) ** 2 + noise).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS, ids=lambda mel: mel.kind)
def test_mel_of_the_sound_is_near_the_one_given(kind):
    """In nepers of magnitude, of bands within 60 dB of the loudest: below 0.2, half of random."""
    cfg = dataclasses.replace(kind, normalize="none")
    wave = voiced(cfg.rate)
    mels = extract_log_mel(wave, cfg)
    units = {"whisper": 0.25 * 2 / np.log(10), "speecht5": 1 / np.log(10), "vocos": 1.0}

    def distance(iterations):
        sound = griffin_lim(mels, cfg, iterations)
        assert abs(sound.size - wave.size) <= cfg.hop + (400 if cfg.kind == "phi4" else 0)
        assert iterations == 0 or 0.7 < sound.std() / wave.std() < 1.4
        found = extract_log_mel(sound, cfg)[: len(mels)]
        loud = mels[: len(found)] > mels.max() - 6.9 * units.get(cfg.kind, 2.0)
        return np.abs(found - mels[: len(found)])[loud].mean() / units.get(cfg.kind, 2.0)

    found = distance(32)
    assert found < 0.2
    assert found < 0.6 * distance(0)


def test_global_normalisation_is_undone():
    cfg = Mel("speecht5", normalize="global", mean=(-2.0,) * 80, invstd=(0.5,) * 80)
    wave = voiced(16_000)
    bare = dataclasses.replace(cfg, normalize="none")
    found = griffin_lim(normalized_log_mel(wave, cfg), cfg, 4)
    np.testing.assert_allclose(found, griffin_lim(extract_log_mel(wave, bare), bare, 4), atol=1e-3)


def test_what_cannot_be_inverted_is_a_mistake():
    mels = np.zeros((3, 80), np.float32)
    with pytest.raises(Mistake, match="mel.normalize=utterance: the level of the sound is lost"):
        griffin_lim(mels, Mel())
    with pytest.raises(Mistake, match="mel of 80 bands: mel.m=100"):
        griffin_lim(mels, Mel("vocos", m=100, normalize="none"))
    assert griffin_lim(mels[:0], Mel(normalize="none")).size == 0
