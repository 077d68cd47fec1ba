"""Each kind of failure where it is and not where it is not, by thresholds that can be moved."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.audio.sound import Sound
from launch.evaluation.speech.failures import (
    FailureRules,
    Spoken,
    count_missing,
    count_repeated,
    failure_counts,
    find_failures,
    silent_share,
)
from melllm_jax.errors import Mistake

RULES = FailureRules()
TEXT = "the quick brown fox jumps over the lazy dog"
FINE = Spoken(TEXT, 3.0, 0.3, True, TEXT.split(), TEXT.split(), False)


def failures(rules=RULES, **changes):
    if "heard" in changes:
        changes["heard"] = changes["heard"].split()
    return find_failures(dataclasses.replace(FINE, **changes), rules)


def test_what_is_said_as_it_was_to_be_does_not_fail():
    assert failures() == failures(stopped=None) == {}


def test_no_stop_is_what_the_generator_says_or_more_time_than_the_text_allows():
    longest = 2 + 0.2 * len(TEXT)
    assert RULES.longest(TEXT) == pytest.approx(longest)
    assert failures(stopped=False) == {"no_stop": 3.0}
    assert failures(seconds=longest - 0.01) == {}
    assert failures(seconds=longest + 0.01) == {"no_stop": longest + 0.01}


def test_silence_is_a_share_of_frames():
    assert failures(silent=0.75) == {}
    assert failures(silent=0.76) == {"silence": 0.76}
    assert failures(FailureRules(silent_share=0.2)) == {"silence": 0.3}


def test_share_of_silent_frames_is_counted_by_their_level():
    tone = 0.1 * np.sqrt(2) * np.sin(2 * np.pi * 500 * np.arange(16_000) / 16_000)  # -20 dBFS
    wave = np.concatenate([tone, np.zeros(8_000), 0.01 * tone, tone[:7]]).astype(np.float32)
    sound = Sound(wave, 16_000)
    assert silent_share(sound, -19.0) == 1
    assert silent_share(sound, -21.0) == pytest.approx(1.5 / 2.5)
    assert silent_share(sound, -59.0) == pytest.approx(1.5 / 2.5)
    assert silent_share(sound, -61.0) == pytest.approx(0.5 / 2.5)
    assert silent_share(Sound(wave[:100], 16_000), -50.0) == 1


@pytest.mark.parametrize(
    ("heard", "count"),
    [
        (TEXT, 0),
        ("the quick brown fox the quick brown fox jumps over the lazy dog", 2),
        ("the quick brown fox jumps over the lazy dog dog", 1),  # one word at once again
        ("the quick the quick brown fox jumps over the lazy dog", 1),  # two words at once again
        ("the quick brown fox jumps over fox jumps over the lazy dog", 1),  # no phrase twice over
        ("the the the the quick brown fox jumps over the lazy dog", 3),
        ("the quick brown fox jumps over the brown lazy the quick dog", 0),  # two words, apart
    ],
)
def test_phrases_that_come_again_are_counted(heard, count):
    assert count_repeated(TEXT.split(), heard.split(), 3) == count
    assert ("repeated" in failures(heard=heard)) == bool(count)


def test_what_the_text_says_twice_is_no_repetition():
    boat = ["row", "your", "boat"]
    song = ["row", "row", *boat, *boat, "gently", "down", *boat]
    assert count_repeated(song, song, 3) == 0
    assert count_repeated(song, [*song, *boat], 3) > 0


def test_a_judge_that_was_stopped_in_a_loop_heard_a_repetition():
    assert failures(looped=True) == {"repeated": 0}


@pytest.mark.parametrize(
    ("heard", "missing"),
    [
        (TEXT, 0),
        ("the quick brown fox jumps", 4),
        ("a brick crown fox jumps", 4),  # wrong words are not missing ones
        ("fox jumps over the lazy dog", 0),  # what lacks at the start is not cut off
        ("the quick brown fox jumps over the lazy", 1),
        ("the quick brown fox jumps over the lazy dog and runs away", 0),
        ("", 9),
    ],
)
def test_words_missing_at_the_end_are_counted(heard, missing):
    assert count_missing(TEXT.split(), heard.split()) == missing
    assert failures(heard=heard) == ({"cut": missing} if missing > 1 else {})


def test_cut_takes_a_share_of_a_long_text_and_words_of_a_short_one():
    words = [f"word{i}" for i in range(20)]
    spoken = dataclasses.replace(FINE, wanted=words)
    assert find_failures(dataclasses.replace(spoken, heard=words[:17]), RULES) == {}
    assert find_failures(dataclasses.replace(spoken, heard=words[:16]), RULES) == {"cut": 4}
    short = dataclasses.replace(FINE, wanted=["yes", "sir"], heard=["yes"])
    assert find_failures(short, RULES) == {}
    assert find_failures(short, FailureRules(cut_words=1)) == {"cut": 1}


def test_files_are_counted_once_and_by_each_kind():
    found = [{}, {"cut": 3, "silence": 0.9}, {"cut": 2}]
    expected = {"files": 2, "no_stop": 0, "silence": 1, "repeated": 0, "cut": 2}
    assert failure_counts(found) == expected


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"pace": -0.1}, "failures.pace=-0.1: must be 0 or more"),
        ({"silent_share": 1.5}, "failures.silent_share=1.5: must lie in [0, 1]"),
        ({"cut_share": float("nan")}, "failures.cut_share=nan: must lie in [0, 1]"),
        ({"phrase_words": 0}, "failures.phrase_words=0: must be positive"),
        ({"silent_level": 3.0}, "failures.silent_level=3.0: must lie over -120 and up to 0 dBFS"),
    ],
)
def test_thresholds_that_cannot_be_are_refused(change, rule):
    with pytest.raises(Mistake) as refused:
        FailureRules(**change)
    assert str(refused.value) == rule
