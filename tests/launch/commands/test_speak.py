"""`melllm speak` on a small run: files, JSON, a corpus's texts, a voice, and refusals."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.examples.tts_example import TtsExampleMaker
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.turns import CLIP, Turn
from launch import cli
from launch.runs.run_inputs import complete_run
from launch.speech.run_speaker import SpeakerChoice, open_speaker
from launch.speech.speaking_model import Question, SpeakingModel
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.overrides import override
from melllm_jax.inference.token_loop import Generation
from melllm_jax.objectives.run_objective import objective_of
from tests.support import models, phi_files, whisper_files
from tests.support.runs import (
    compiled_once,
    compiled_quickly,
    corpus,
    generated_once,
    one_device,
    refused,
    saved,
    tiny,
    two_updates,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
held = pytest.fixture(scope="module", autouse=True)(generated_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
alone = pytest.fixture(scope="module", autouse=True)(one_device)
HEAD = {"prenet": 8, "hidden": 8, "channels": 4, "convolutions": 2, "taps": 3}
SPEAKING = {"model.writes": "speech", "model.front": "none", "mel.normalize": "global"}
SPEAKING |= {f"model.mel_head.{name}": size for name, size in HEAD.items()}
LIMIT = ("--speaking.extra", "0.5", "--speaking.per-letter", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`data` and `run`, of random weights, that speaks; `ears`, a run that does not."""
    folder = tmp_path_factory.mktemp("speak")
    run = override(tiny(corpus(folder / "data"), steps=1), SPEAKING)
    run = complete_run(run).run
    with models.one_device():
        saved(folder / "run", run, models.drawn(objective_of(run).build)[1])
    two_updates(folder / "ears")
    return folder


def told(folder, capsys, *words, run="run"):
    capsys.readouterr()
    assert cli.main(["speak", "--run", str(folder / run), *LIMIT, *map(str, words)]) == 0
    return capsys.readouterr().out


def test_a_text_becomes_a_file_and_the_output_says_what_made_it(folder, capsys, tmp_path):
    out = tmp_path / "a.wav"
    line = told(folder, capsys, "hello there", "--out", out)
    assert "Griffin-Lim, without a vocoder" in line
    wave, rate = soundfile.read(out)
    assert rate == 16_000
    assert 0 < len(wave) <= 0.6 * rate
    first = out.read_bytes()
    told(folder, capsys, "hello there", "--out", out)
    assert out.read_bytes() == first
    told(folder, capsys, "hello there", "--out", out, "--seed", 1)
    assert out.read_bytes() != first


def test_json_has_its_figures_and_a_picture_is_drawn(folder, capsys, tmp_path):
    out, picture = tmp_path / "a.wav", tmp_path / "a.png"
    found = json.loads(told(folder, capsys, "hi", "--out", out, "--json", "--picture", picture))
    assert found["text"] == "hi"
    assert found["duration"] == pytest.approx(len(soundfile.read(out)[0]) / 16_000, abs=1e-3)
    assert found["rtf"] == pytest.approx(found["seconds"] / found["duration"], rel=0.05, abs=2e-3)
    assert found["flags"].keys() == {"stopped", "broken"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_texts_of_a_corpus_are_spoken_beside_their_recordings(folder, capsys, tmp_path):
    out = tmp_path / "said"
    words = ("--data", folder / "data", "--split", "train", "--most", 3, "--out", out, "--batch", 2)
    told(folder, capsys, *words)
    lines = [json.loads(line) for line in (out / "spoken.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert soundfile.info(out / line["audio_filepath"]).duration == pytest.approx(
            line["duration"], abs=1e-3
        )
        assert soundfile.info(out / line["reference"]).frames > 0
    assert "3 texts" in told(folder, capsys, *words)


@pytest.fixture(scope="module")
def listener(folder):
    """A run of random weights that hears as well; its folder."""
    run = override(run_folder.read_run(str(folder / "run")), {"model.front": "linear"})
    run = override(run, {"text.template": "phi4", "mel.normalize": "none", "mel.mean": []})
    run = override(run, {"mel.invstd": []})
    with models.one_device():
        saved(folder / "listener", run, models.drawn(objective_of(run).build)[1])
    return folder / "listener"


def test_a_question_is_answered_in_words_and_then_in_sound(folder, listener, capsys, tmp_path):
    asked, out = folder / "data" / "audio" / "0.flac", tmp_path / "a.wav"
    words = ["--question", asked, "Why?", "--out", out, "--json"]
    found = json.loads(told(folder, capsys, *words, run="listener"))
    assert found["duration"] == pytest.approx(len(soundfile.read(out)[0]) / 16_000)
    with open_speaker(SpeakerChoice(run=str(listener))) as speaker:
        reply = speaker.model.reply(Question(asked, "Why?"))
        other = speaker.model.reply(Question(None, "Why?"))
    assert found["text"] == reply.text != other.text
    assert reply.columns["clips"].max() == 1 > other.columns["clips"].max()


def test_an_answer_is_spoken_after_all_that_comes_before_as_in_training(
    folder, listener, monkeypatch
):
    said = Generation(np.array([[*b"So. "]]), np.array([3]), np.ones(1, bool), np.zeros(1, bool))
    monkeypatch.setattr(SpeakingModel, "_decoder", staticmethod(lambda prompt, limits: said))
    with open_speaker(SpeakerChoice(run=str(listener))) as speaker:
        reply = speaker.model.reply(Question(folder / "data" / "audio" / "0.flac", "Why?"))
    assert reply.text == "So."
    first, second, *_ = open_corpus(folder / "data", "train")
    turns = (Turn("user", (CLIP, "Why?")), Turn("assistant", ("So.", CLIP)))
    task = dataclasses.replace(first, text="So.", turns=turns, more=(second,))
    run = override(run_folder.read_run(str(listener)), {"data.t": 512, "data.wire": "float32"})
    learnt = TtsExampleMaker(run, load_tokenizer("bytes")).train((0, task), np.random.default_rng())
    length = len(reply.columns["tokens"])
    assert learnt["clips"][length - 1 : length + 1].tolist() == [0, -2]
    for name, column in reply.columns.items():
        np.testing.assert_array_equal(learnt[name][:length], column, err_msg=name)


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("run", ["--answer", "Why?"], 'text.template="plain": has room for one clip'),
        ("run", ["--question", "a.wav"], 'model.front="none": the model hears nothing'),
        ("listener", ["--answer"], "question: is empty: give a sound, words or both"),
        ("listener", ["--answer", "a", "b"], "texts: one question is asked, not 2"),
        ("listener", ["--answer", "a", "--file", "b"], "file=b: goes with no question"),
        ("listener", ["--answer", "a" * 80], "question: takes 83 positions: the model has 64"),
        ("listener", ["--question", "a.wav"], "a.wav: "),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line(
    folder, listener, run, words, message, capsys, tmp_path
):
    out = tmp_path / "a.wav"
    said = refused(["speak", "--run", folder / run, *words, "--out", out], capsys)
    assert message in said
    assert not out.exists()


def test_a_voice_is_gone_on_from(folder, capsys, tmp_path):
    voice = tmp_path / "voice.wav"
    noise = np.random.default_rng(0).standard_normal(16_000) * 0.1
    soundfile.write(voice, noise, 16_000)
    plain, other = tmp_path / "a.wav", tmp_path / "b.wav"
    told(folder, capsys, "hi", "--out", plain)
    told(folder, capsys, "hi", "--out", other, "--voice", voice, "--voice-text", "well")
    assert plain.read_bytes() != other.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "texts: give one at least, --file FILE or --data DIR"),
        ([" "], "text=' ': is empty: must hold words"),
        (["a", "b"], "is one file for 2 texts: give a folder"),
        (
            ["a" * 70],
            "takes 71 positions: the model has 64 (data.t), and needs room for what it says",
        ),
        (["a\udcff"], "text="),
        (["a", "--voice-text", "b"], "voice_text: goes with --voice FILE"),
        (["a", "--voice", "v.wav"], "a voice needs what is said in it"),
        (["a", "--speaking.stop", "1"], "stop=1.0: must lie between 0 and 1"),
        (["a", "--vocoder", "nowhere"], "vocoder=nowhere: "),
    ],
)
def test_mistakes_take_one_line_and_write_nothing(folder, words, message, capsys, tmp_path):
    out = tmp_path / "a.wav"
    line = refused(["speak", "--run", folder / "run", *words, "--out", out], capsys)
    assert message in line
    assert not out.exists()


@pytest.mark.slow
def test_evaluate_speaks_a_split_and_scores_it_and_says_nothing_twice(folder, capsys, monkeypatch):
    pytest.importorskip("jiwer", reason="the extra eval brings the scorer")
    whisper_files.write(folder / "hf")
    phi_files.told("import", folder / "hf", folder / "ears_of_whisper")
    words = ["evaluate", "--task", "tts", "--run", folder / "run", "--data", folder / "data"]
    words += ["--split", "train", "--most", "2", "--batch", "8", *LIMIT, "--json"]
    words += ["--judge", folder / "ears_of_whisper"]
    assert cli.main([*map(str, words)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["files"] == 2
    assert {"wer", "cer", "mcd", "failures"} <= scores.keys()
    spoken = folder / "run" / "eval" / "tts-train-1"
    assert len((spoken / "spoken.jsonl").read_text().splitlines()) == 2
    monkeypatch.setattr(SpeakingModel, "say", lambda self, texts, **_: iter(()))
    assert cli.main([*map(str, words)]) == 0
    assert json.loads(capsys.readouterr().out) == scores


def test_a_run_that_writes_text_alone_is_refused(folder, capsys, tmp_path):
    words = ["speak", "--run", folder / "ears" / "run", "a", "--out", tmp_path / "a.wav"]
    assert "has no head that speaks" in refused(words, capsys)


def test_a_patch_that_is_not_finite_ends_the_text_flagged(folder, capsys, tmp_path, monkeypatch):
    """Without a patch there is a file without a sample, and the line says why."""
    said = SpeakingModel.say

    def broken(self, texts, **how):
        for spoken in said(self, texts, **how):
            yield dataclasses.replace(spoken, mel=spoken.mel[:0], broken=True, stopped=False)

    monkeypatch.setattr(SpeakingModel, "say", broken)
    out = tmp_path / "a.wav"
    assert "ended where it was not finite" in told(folder, capsys, "hi", "--out", out)
    assert soundfile.info(out).frames == 0
