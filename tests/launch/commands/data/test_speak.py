import io
import json
import sys

import numpy as np
import pytest

from data_pipelines.audio.file_io import decode_audio
from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.examples.asr_example import ExampleMaker
from data_pipelines.synthetic import natural_voice, spoken_text
from data_pipelines.synthetic.spoken_text import Manner
from data_pipelines.synthetic.text_sentences import find_sentences
from data_pipelines.text.load_tokenizer import load_tokenizer
from launch import cli
from melllm_jax.config.overrides import override
from tests.support.corpora import run_over
from tests.support.runs import everything, refused

pytest.importorskip("espeakng_loader", reason="the extra demo brings the voices")

FEW = ["--train", "3", "--dev", "1", "--test", "1"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven"]
LINES = [f"{first.title()} is {second}." for first in NUMBERS for second in NUMBERS]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("\n".join([*LINES, "One is one.", "One is 1."]))
    return str(path)


def test_text_becomes_audio_shards_and_what_is_known_of_its_words_is_said(
    tmp_path, text, capsys, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert cli.main(["data", "speak", str(out), "--text", text, *FEW]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("5 utterances, 0.0 h: ")
    found = find_sentences(LINES, 3, 20)
    assert told[2] == "sentences in the text: " + ", ".join(
        f"{len(some)} {split}" for split, some in found.splits.items()
    )
    assert told[3] == "left out: 1 repeated, 1 with a digit"
    words = {}
    for split, count in (("train", 3), ("dev", 1), ("test", 1)):
        stored = [open_corpus(out, split)[at] for at in range(count)]
        assert [one.text for one in stored] == list(found.draw(split, count, 0))
        assert all(decode_audio(one.audio).size == one.duration * 16_000 for one in stored)
        words[split] = {word for one in stored for word in one.text.lower().strip(".").split()}
    new = len(words["test"] - words["train"])
    heard = f"{len(words['train'])} words in train; of test's {len(words['test'])} words {new} are"
    assert told[1].startswith(heard)
    assert json.loads((out / "index.json").read_text())["stores"] == "flac"
    before = everything(out)
    assert "holds a corpus already" in refused(["data", "speak", out, "--text", text], capsys)
    assert everything(out) == before


def test_questions_become_shards_that_are_answered_from_their_sound(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    rows = [
        {"question": "Is it one?", "answer": ["yes", "it is"], "split": "train"},
        {"question": "Is it two?", "answer": "no", "split": "test"},
        {"question": "Is it two?", "answer": "no"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, asked = tmp_path / "out", ["--questions", str(tmp_path / "a.jsonl")]
    assert cli.main(["data", "speak", str(out), *asked, "--clean"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("2 utterances, 0.0 h: ")
    assert told[1:] == ["questions in the file: 1 train, 0 dev, 1 test", "left out: 1 repeated"]
    (one,) = open_corpus(out, "train")
    assert one.turns[0].parts == (None, "Answer the question in the recording.")
    assert (one.text, one.answers, one.metric) == ("yes", ("yes", "it is"), "contains")
    spoken = spoken_text.speak_sentence("Is it one?", "train", 0, Manner(clean=True))
    assert one.speaker == spoken.speaker
    heard = decode_audio(one.audio)
    assert np.abs(heard - spoken.wave).max() < 1e-4
    (test,) = open_corpus(out, "test")
    run = override(run_over(out), {"text.template": "phi4", "model.v": 300})
    trial = ExampleMaker(run, load_tokenizer("bytes")).eval_example(test)
    assert (trial.task, trial.reference, trial.answers) == ("spoken-qa", "no", ("no",))
    assert "train=2: the file has 1 questions of that split" in refused(
        ["data", "speak", tmp_path / "more", *asked, "--train", "2"], capsys
    )
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    "words,line",
    [
        (["--text", "missing.txt"], "missing.txt: is no file"),
        (["--text", "bytes"], "bytes: is no UTF-8 text: invalid start byte at byte 4"),
        (["--text", "-"], "the text has no sentence of 3 to 20 words: 1 with a digit"),
        (["--text", "TEXT", *FEW[2:]], "train=5000: the text has 36 sentences of that split"),
        (["--text", "TEXT", "--words", "5", "4"], "words=5 4: must be FEWEST MOST, from 1"),
        (["--text", "TEXT", "--voices", "human"], "human"),
        (["--voices", "natural"], "voices: is of a text: it needs --text"),
        (["--clean"], "clean: is of a text: it needs --text or --questions"),
        (["--questions", "TEXT", "--words", "1", "2"], "words: is of a text: it needs --text"),
        (["--questions", "TEXT", "--text", "TEXT"], "give one of them"),
        (["--questions", "TEXT"], "some.txt line 1: is no JSON"),
        (["--questions", "none.jsonl"], "none.jsonl: is no file"),
        (["--text", "TEXT", *FEW, "--voices", "both"], 'pip install "melllm_jax[natural]"'),
    ],
)
def test_mistake_is_one_line_and_writes_nothing(words, line, tmp_path, text, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hibari", None)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"I am 5 today.")))
    natural_voice.load.cache_clear()
    (tmp_path / "bytes").write_bytes(b"one \xff")
    given = [text if word == "TEXT" else word for word in words]
    assert line in refused(["data", "speak", "out", *given], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "some.txt"]
