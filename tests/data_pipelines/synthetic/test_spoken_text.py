"""Sentences of a text are spoken the same each time, in the voices that their split may hear."""

import numpy as np
import pytest

from data_pipelines.synthetic import espeak, natural_voice, spoken_text
from data_pipelines.synthetic.spoken_text import Manner, speak_sentence

pytest.importorskip("espeakng_loader", reason="the extra demo brings the voices")

TEXT = "Be careful, Ann!"
TONE = np.sin(np.arange(12_000) / 20).astype(np.float32) / 2


@pytest.fixture
def tone(monkeypatch):
    """A stand-in for the natural voice, which hums; the calls that it had."""
    calls = []

    def voice(text, speed, seed):
        calls.append((text, speed, seed))
        return TONE

    monkeypatch.setattr(natural_voice, "load", lambda: voice)
    return calls


def test_utterance_is_the_same_whatever_was_spoken_before_and_another_by_seed_or_index():
    def said(index, seed):
        one = speak_sentence(TEXT, "train", index, Manner(seed=seed))
        return one.speaker, one.wave.tobytes()

    first = said(0, 0)
    assert said(1, 0) != first and said(0, 1) != first
    assert said(0, 0) == first


def test_utterance_has_its_sentence_as_written_and_a_voice_of_its_split():
    for split in espeak.SPLITS:
        one = speak_sentence(TEXT, split, 7, Manner())
        assert (one.id, one.text) == (f"{split}-000007", TEXT)
        assert one.speaker in espeak.voices(split)
        assert one.wave.dtype == np.float32 and np.abs(one.wave[-80:]).max() > 1e-5


def test_both_kinds_of_voice_speak_in_train_and_dev_and_unheard_ones_alone_in_test(tone):
    for split in ("train", "dev"):
        ones = [speak_sentence("Oh no.", split, at, Manner("both")) for at in range(12)]
        speakers = [one.speaker for one in ones]
        assert 2 < speakers.count(natural_voice.SPEAKER) < 10
        assert {*speakers} - {natural_voice.SPEAKER} <= {*espeak.voices(split)}
    paces = [pace for _, pace, _ in tone]
    assert spoken_text.PACE[0] <= min(paces) < 1 < max(paces) <= spoken_text.PACE[1]
    ones = [speak_sentence("Oh no.", "test", at, Manner("both")) for at in range(12)]
    assert {one.speaker for one in ones} <= {*espeak.voices("test")}


def test_clean_utterance_is_the_voice_at_16_khz_and_any_other_has_level_and_noise(tone):
    clean, other = (
        speak_sentence(TEXT, "test", 0, Manner("natural", clean)) for clean in (True, False)
    )
    assert clean.speaker == natural_voice.SPEAKER
    assert clean.wave.size == other.wave.size == 8000
    assert np.abs(clean.wave).max() == pytest.approx(0.5, abs=0.02)
    gain = clean.wave @ other.wave / (clean.wave @ clean.wave)
    rest = other.wave - gain * clean.wave
    ratio = 10 * np.log10(np.mean((gain * clean.wave) ** 2) / np.mean(rest**2))
    assert 19 < ratio < 46
    assert [call[:2] for call in tone[:1]] == [(TEXT, 1.0)]


def test_silence_around_what_the_natural_voice_says_is_cut_and_a_pause_in_it_stays(monkeypatch):
    silence = np.zeros(9600, np.float32)
    breath = np.full(9600, 1e-4, np.float32)  # 74 dB below the voice
    wave = np.concatenate([silence, TONE, silence, TONE, breath])
    monkeypatch.setattr(natural_voice, "load", lambda: lambda text, speed, seed: wave)
    found = natural_voice.speak(TEXT)
    assert found.size / 16_000 == pytest.approx(0.05 + 0.5 + 0.4 + 0.5 + 0.05, abs=0.002)
    assert np.abs(found[:700]).max() < 1e-5 and np.abs(found[800:1600]).max() > 0.4
    assert 0 < np.abs(found[-700:]).max() < 2e-4


@pytest.mark.slow
def test_natural_voice_says_the_same_again_and_faster_at_a_higher_pace():
    pytest.importorskip("hibari", reason="the extra natural brings the voice")
    first = natural_voice.speak(TEXT, seed=3)
    natural_voice.speak("Something else.", 1.1, 4)
    assert natural_voice.speak(TEXT, seed=3).tobytes() == first.tobytes()
    assert natural_voice.speak(TEXT, seed=4).tobytes() != first.tobytes()
    fast = natural_voice.speak(TEXT, 1.5, seed=3)
    assert first.dtype == np.float32 and 0.7 < first.size / 16_000 < 2.5
    assert 1.2 < first.size / fast.size < 1.8
