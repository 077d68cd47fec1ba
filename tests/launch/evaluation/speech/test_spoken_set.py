"""What is scored, by manifests and corpora; lines that say nothing to score are named."""

import json
import os

import numpy as np
import pytest
import soundfile

from launch.evaluation.speech.spoken_set import read_facts, read_spoken
from melllm_jax.errors import Mistake
from tests.support.corpora import write_corpus

WAVE = np.random.default_rng(0).normal(0, 0.1, 8_000).clip(-0.9, 0.9)
ROW = {"id": "a", "text": "one two", "audio_filepath": "a.wav"}


@pytest.fixture
def folder(tmp_path):
    soundfile.write(tmp_path / "a.wav", WAVE, 16_000)
    soundfile.write(tmp_path / "fast.wav", WAVE, 24_000)
    soundfile.write(tmp_path / "none.wav", WAVE[:0], 16_000)
    soundfile.write(tmp_path / "nan.wav", WAVE * np.nan, 16_000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no sound")
    return tmp_path


def manifest(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "test.jsonl")


def facts(folder, row):
    return read_facts(*read_spoken(manifest(folder, ROW | row)), -50.0)


def test_lines_name_the_sound_and_what_it_is_held_against(folder):
    more = {"reference": "fast.wav", "voice": str(folder / "a.wav"), "flags": {"stopped": False}}
    first, second = read_spoken(manifest(folder, ROW | more, "", ROW | {"id": "b", "duration": 9}))
    assert first.utterance.text == "one two"
    assert [os.fspath(x) for x in (first.utterance.audio, first.reference, first.voice)] == [
        str(folder / name) for name in ("a.wav", "fast.wav", "a.wav")
    ]
    assert (first.stopped, second.stopped, second.reference) == (False, None, None)
    assert first.load().seconds == 0.5


def test_a_split_of_a_corpus_is_scored_as_a_manifest_is(tmp_path):
    write_corpus(tmp_path, 2, split="dev")
    by_folder, by_file = read_spoken(str(tmp_path), "dev"), read_spoken(f"{tmp_path}/dev.jsonl")
    assert [x.utterance for x in by_folder] == [x.utterance for x in by_file]


def test_facts_are_of_the_samples_and_not_of_the_file(folder):
    found = facts(folder, {})
    assert (found.seconds, found.silent) == (0.5, 0.0)
    soundfile.write(folder / "b.flac", soundfile.read(folder / "a.wav", dtype="int16")[0], 16_000)
    assert facts(folder, {"audio_filepath": "b.flac"}) == found
    assert facts(folder, {"audio_filepath": "fast.wav"}).digest != found.digest
    assert facts(folder, {"audio_filepath": "a.wav", "offset": 0.25, "duration": 0.25}) != found


def test_a_file_without_a_sample_is_silence(folder):
    found = facts(folder, {"audio_filepath": "none.wav"})
    assert (found.seconds, found.silent) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"audio_filepath": "gone.wav"}, "gone.wav: no such file"),
        ({"audio_filepath": "text.wav"}, "text.wav: is no sound"),
        ({"audio_filepath": "nan.wav"}, "nan.wav: holds samples up to nan"),
        ({"reference": "gone.wav"}, "gone.wav: no such file"),
        ({"voice": "none.wav"}, "none.wav: holds no sample"),
    ],
    ids=str,
)
def test_sound_that_is_none_is_named_with_its_line(folder, row, rule):
    with pytest.raises(Mistake) as refused:
        facts(folder, row)
    assert str(refused.value).startswith(f"{folder}/test.jsonl line 1: ")
    assert rule in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        ([], ": has 0 lines: needs one a spoken file"),
        ([ROW, "{"], " line 2: is no JSON: "),
        ([[1]], " line 1: '[1]' is no object of fields"),
        ([{"id": "a", "text": "b"}], " line 1: lacks audio_filepath"),
        ([ROW, ROW], " line 2: id 'a' comes twice"),
        ([ROW | {"text": " "}], " line 1: text=' ': must say what was to be spoken"),
        ([ROW | {"text": 3}], " line 1: text=3: must be a string"),
        ([ROW | {"voice": 3}], " line 1: voice=3: must be the path of a sound"),
        ([ROW | {"flags": [1]}], " line 1: flags=[1]: must be an object"),
        ([ROW | {"flags": {"stopped": 1}}], " line 1: flags={'stopped': 1}: must be an object"),
        ([ROW | {"instruction": "Go.", "answer": "x"}], " line 1: is a task"),
    ],
    ids=str,
)
def test_lines_that_say_nothing_to_score_are_refused(folder, rows, rule):
    with pytest.raises(Mistake) as refused:
        read_spoken(manifest(folder, *rows))
    assert f"{folder}/test.jsonl{rule}" in str(refused.value)


def test_a_manifest_that_is_missing_or_no_text_is_refused(folder):
    with pytest.raises(Mistake, match="gone.jsonl: is no file"):
        read_spoken(str(folder / "gone.jsonl"))
    with pytest.raises(Mistake, match="a.wav: is no UTF-8 text"):
        read_spoken(str(folder / "a.wav"))
