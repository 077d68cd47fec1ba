"""The spoken corpus is the same to the bit from any process, and test shares nothing with train."""

from concurrent.futures import ThreadPoolExecutor
import hashlib
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.audio import file_io
from data_pipelines.synthetic import espeak, grammar
from melllm_jax.errors import Mistake

pytest.importorskip("espeakng_loader", reason="the extra demo brings the voices")

TEXT = "please count seven yellow turtles"


def test_sentences_of_the_grammar_are_many_and_have_one_form_each():
    texts = [
        " ".join(words)
        for form in grammar.FORMS
        for words in itertools.product(*(grammar.WORDS[slot] for slot in form))
    ]
    assert len(texts) == len(set(texts)) == grammar.sentence_count() > 100_000
    assert {len(text.split()) for text in texts} == {3, 4, 5, 6}
    assert len(set(" ".join(texts).split())) == sum(map(len, grammar.WORDS.values())) >= 48


@pytest.mark.parametrize(
    "text,split",  # as `printf TEXT | sha256sum | cut -c1-16` and the last decimal digit tell
    [
        ("catch three camels", "test"),  # 3181580f49f3d7b2: 0
        ("catch two monkeys", "dev"),  # ea5d8b416b3b35c9: 1
        ("catch seven camels", "train"),  # d2626e57f1d02851: 5
    ],
)
def test_split_of_a_known_sentence_stays_for_good(text, split):
    assert grammar.split_of(text) == split


@pytest.mark.parametrize("split", espeak.SPLITS)
def test_sentence_of_a_split_belongs_to_it(split):
    rng = np.random.default_rng(0)
    assert {grammar.split_of(grammar.sentence(split, rng)) for _ in range(50)} == {split}


def test_voices_of_test_are_heard_in_no_other_split():
    train, test = espeak.voices("train"), espeak.voices("test")
    assert set(train) == set(espeak.voices("dev"))
    accents, variants = ({voice.split("+")[part] for voice in train} for part in (0, 1))
    for voice in test:
        accent, variant = voice.split("+")
        assert accent not in accents or variant not in variants, voice
    assert "en-gb-scotland+m4" in test and "en-gb-scotland" not in accents


def test_voices_of_every_split_speak_and_differ():
    spoken = {voice: espeak.speak("alice", voice, 210, 50) for voice in espeak.voices("test")}
    spoken |= {voice: espeak.speak("alice", voice, 210, 50) for voice in espeak.voices("train")}
    assert len({wave.tobytes() for wave in spoken.values()}) == 376


def test_speech_of_a_text_is_the_same_after_other_speech_and_from_threads():
    alone = espeak.speak(TEXT, "en-us+f3", 175, 50)
    espeak.speak("twelve tigers", "en-gb-scotland+m4", 200, 20)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(espeak.speak, TEXT, "en-us+f3", 175, 50) for _ in range(8)]
        later = [call.result() for call in calls]
    assert {wave.tobytes() for wave in later} == {alone.tobytes()}


def test_speech_is_at_16_khz_and_faster_at_a_higher_rate():
    slow, fast = (espeak.speak(TEXT, "en-us+m1", rate, 50) for rate in (150, 210))
    assert slow.dtype == np.float32 and 0.05 < np.abs(slow).max() <= 1
    assert 1.6 * 16_000 < slow.size < 2.6 * 16_000
    assert 1.2 < slow.size / fast.size < 1.5  # 210 / 150 = 1.4, but for pauses


def test_speech_at_a_higher_pitch_has_a_higher_fundamental():
    def fundamental(pitch):
        wave = np.convolve(espeak.speak("no more money", "en-us+f1", 150, pitch), np.hanning(33))
        middle = wave[wave.size // 3 : wave.size // 3 + 3000]
        lags = np.correlate(middle, middle, "full")[middle.size - 1 :]
        return 16_000 / (40 + lags[40:260].argmax())  # Hz, from 53 to 400

    assert 1.4 < fundamental(80) / fundamental(20) < 2


@pytest.mark.parametrize(
    "change,words",
    [
        ({"voice": "xx-none"}, "voice='xx-none'"),
        ({"voice": "en-us+none"}, "no variant 'none'"),
        ({"rate_wpm": 20}, "rate_wpm=20"),
        ({"pitch": 100}, "pitch=100"),
        ({"text": " . "}, "has no letter"),
    ],
)
def test_speech_of_a_mistaken_call_names_the_field(change, words):
    call = {"text": TEXT, "voice": "en-us+m1", "rate_wpm": 175, "pitch": 50}
    with pytest.raises(Mistake, match=words):
        espeak.speak(**(call | change))


def test_speech_without_the_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(Mistake, match=r"pip install \"melllm_jax\[demo\]\""):
        espeak.speak(TEXT, "en-us+m1", 175, 50)


def test_utterance_depends_on_its_index_and_not_on_its_neighbours():
    ahead = list(espeak.speak_corpus("test", 4, seed=3))
    again = [espeak.speak_utterance("test", index, seed=3) for index in (3, 1)]
    for one, same in zip((ahead[3], ahead[1]), again, strict=True):
        assert (one.id, one.text, one.speaker) == (same.id, same.text, same.speaker)
        assert one.wave.tobytes() == same.wave.tobytes()


def test_speech_with_noise_of_breath_is_the_same_in_a_later_process():
    code = (
        "import hashlib; from data_pipelines.synthetic.espeak import speak; "
        f"print(hashlib.sha256(speak({TEXT!r}, 'en-us+f3', 175, 50).tobytes()).hexdigest())"
    )
    here = hashlib.sha256(espeak.speak(TEXT, "en-us+f3", 175, 50).tobytes()).hexdigest()
    for _ in range(2):  # the engine would seed the noise by the second, which is over by then
        there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert there.stdout.strip() == here, there.stderr


@pytest.mark.parametrize("other", [("train", 0, 2), ("train", 1, 1), ("dev", 0, 1)])
def test_utterance_of_another_seed_index_or_split_differs(other):
    one, two = espeak.speak_utterance("train", 0, 1), espeak.speak_utterance(*other)
    assert one.wave.tobytes() != two.wave.tobytes()
    assert (one.text, one.speaker) != (two.text, two.speaker)


def test_utterances_have_their_splits_voices_and_sentences_at_varied_levels():
    ones = list(espeak.speak_corpus("train", 40))
    assert {one.speaker for one in ones} <= set(espeak.voices("train"))
    assert {grammar.split_of(one.text) for one in ones} == {"train"}
    assert [one.id for one in ones[:2]] == ["train-000000", "train-000001"]
    peaks = [np.abs(one.wave).max() for one in ones]
    assert 0.08 < min(peaks) < 0.3 and 0.5 < max(peaks) <= 1
    assert 1.3 < np.mean([one.wave.size for one in ones]) / 16_000 < 2.2
    # Noise fills what espeak-ng leaves silent at either end.
    assert all(np.abs(one.wave[-80:]).max() > 1e-5 for one in ones)


def test_corpus_on_disk_holds_the_utterances_of_its_manifests(tmp_path):
    espeak.write_spoken_corpus(tmp_path, {"train": 3, "test": 2}, seed=7)
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["test.jsonl", "train.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    for line, one in zip(lines, espeak.speak_corpus("test", 2, seed=7), strict=True):
        assert (line["id"], line["text"], line["speaker"]) == (one.id, one.text, one.speaker)
        assert line["duration"] == one.wave.size / 16_000
        wave = file_io.decode_audio(tmp_path / line["audio_filepath"])
        np.testing.assert_allclose(wave, one.wave, atol=2**-15)  # a step of 16 bits
