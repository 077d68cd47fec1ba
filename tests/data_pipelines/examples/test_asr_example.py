import dataclasses
import json
import math
import typing

import numpy as np
import pytest
import soundfile

from data_pipelines.audio.file_io import AudioReason
from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import (
    EvalExample,
    ExampleMaker,
    load_mel,
    reject_reasons,
)
from data_pipelines.examples.text_example import TextExampleMaker
from data_pipelines.reject import Reject
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel, Text
from tests.support.corpora import MEL, run_over, spelled, write_corpus

BYTES = load_tokenizer("bytes")


def made(folder, fields, **data):
    """The example of a corpus of one, whose manifest has these fields changed."""
    corpus = open_corpus(write_corpus(folder, 1, changes={0: fields}), "train")
    examples = ExampleMaker(run_over(folder, **data), BYTES)
    return examples.train((3, corpus[0]), np.random.default_rng(0))


def test_example_holds_the_prompt_the_mel_and_the_words(tmp_path):
    columns = made(tmp_path, {"text": "hi"}, wire="float32")
    corpus = open_corpus(tmp_path, "train")
    mel = load_mel(corpus[0], MEL, longest=math.inf)
    t = math.ceil(len(mel) / 8)
    start, end = BYTES.special("<|assistant|>"), BYTES.special("<|end|>")
    assert columns["tokens"].tolist() == [BYTES.special("<|audio|>")] * t + [start, *b"hi", end]
    assert columns["loss_weight"].tolist() == [0.0] * (t + 1) + [1.0, 1.0, 1.0]
    assert columns["sources"].tolist() == [3] * (t + 4)
    assert np.array_equal(columns["patches"][:t].reshape(-1, 8)[: len(mel)], mel)


def test_example_has_patches_of_the_wire_dtype(tmp_path):
    assert made(tmp_path, {}, wire="bfloat16")["patches"].dtype.name == "bfloat16"
    assert made(tmp_path, {}, wire="float32")["patches"].dtype == np.float32


@pytest.mark.parametrize(
    ("fields", "data", "reason"),
    [
        ({"audio_filepath": "none.flac"}, {}, "missing"),
        ({"audio_filepath": "train.jsonl"}, {}, "undecodable"),
        ({"offset": 99.0}, {}, "empty"),
        ({"duration": 31.0}, {}, "longer than 30 s"),
        ({}, {"longest": 0.1}, "longer than 0.1 s"),
        ({"duration": 0.0}, {"longest": 0.1}, "longer than 0.1 s"),
        ({"text": " "}, {}, "empty transcript"),
        ({"text": "a\ud800b"}, {}, "unknown characters"),
        ({}, {"t": 8}, "longer than the row of t=8"),
    ],
)
def test_example_of_an_unusable_utterance_is_a_reject_with_its_reason(
    tmp_path, fields, data, reason
):
    reject = made(tmp_path, fields, **data)
    assert isinstance(reject, Reject)
    assert (reject.source, reject.id, reject.reason) == (3, "id0", reason)
    assert reason in reject_reasons(run_over(tmp_path, **data).data)
    assert "\n" not in reject.detail


@pytest.mark.parametrize("maker", [ExampleMaker, TextExampleMaker])
def test_example_of_a_row_with_a_flaw_is_a_reject(tmp_path, maker):
    run = run_over(tmp_path)
    row = Utterance("i", "", 0.0, "", flaw="a:1: bad")
    reject = maker(run, BYTES).train((3, row), np.random.default_rng(0))
    assert reject == Reject(3, "i", "malformed row", "a:1: bad")
    assert reject.reason in reject_reasons(run.data)


def test_example_of_less_sound_than_a_frame_is_a_reject(tmp_path):
    changes = {0: {"offset": 0.0, "duration": 0.024}}  # a frame of phi4 takes 25 ms
    corpus = open_corpus(write_corpus(tmp_path, 1, changes=changes), "train")
    run = dataclasses.replace(run_over(tmp_path), mel=Mel())
    reject = ExampleMaker(run, BYTES).train((0, corpus[0]), np.random.default_rng(0))
    assert reject.reason == "too short"
    assert reject.reason in reject_reasons(run.data)


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "not finite"), (0.1, "rate")])
def test_example_of_a_file_that_decodes_to_nothing_usable_is_a_reject(tmp_path, value, reason):
    wave = np.full(4000, 0.1, np.float32)
    wave[7] = value
    folder = write_corpus(tmp_path, 1, changes={0: {"audio_filepath": "odd.wav"}})
    rate = 4000 if reason == "rate" else 16_000
    soundfile.write(folder / "odd.wav", wave, rate, subtype="FLOAT")
    reject = ExampleMaker(run_over(folder), BYTES).train(
        (0, open_corpus(folder, "train")[0]), np.random.default_rng(0)
    )
    assert reject.reason == reason
    assert "odd.wav" in reject.detail
    assert reason in reject_reasons(run_over(folder).data)


def test_example_of_ready_mel_without_a_frame_is_a_reject(tmp_path):
    utterance = Utterance("a", "one", 0.0, "me", mel=np.zeros((0, 8), np.float32))
    run = run_over(tmp_path)
    reject = ExampleMaker(run, BYTES).train((0, utterance), np.random.default_rng(0))
    assert reject.reason == "too short"


def test_reasons_hold_every_reason_of_bad_audio():
    """A lane counts in a table made of them: another reason would stop the run by a KeyError."""
    assert set(typing.get_args(AudioReason)) < set(reject_reasons(Data(t=1, b=1)))


def test_example_that_just_fills_its_row_is_used(tmp_path):
    t = len(made(tmp_path, {})["tokens"])
    assert len(made(tmp_path, {}, t=t)["tokens"]) == t
    assert isinstance(made(tmp_path, {}, t=t - 1), Reject)


def test_example_of_a_run_without_global_statistics_stops_it(tmp_path):
    corpus = open_corpus(write_corpus(tmp_path, 1), "train")
    run = dataclasses.replace(run_over(tmp_path), mel=dataclasses.replace(MEL, normalize="global"))
    with pytest.raises(ValueError, match=r"mel.mean"):
        ExampleMaker(run, BYTES).train((0, corpus[0]), np.random.default_rng(0))


def test_trial_is_the_prompt_alone_of_an_utterance_of_any_length(tmp_path):
    corpus = open_corpus(write_corpus(tmp_path, 1, changes={0: {"duration": 99.0}}), "train")
    run = dataclasses.replace(run_over(tmp_path, t=4, longest=0.1), text=Text())
    trial = ExampleMaker(run, BYTES).eval_example(corpus[0])
    assert isinstance(trial, EvalExample)
    assert (trial.id, trial.reference, trial.duration) == ("id0", spelled(0), 99.0)
    assert trial.columns["tokens"][-1] == BYTES.special("<|assistant|>")
    assert not trial.columns["loss_weight"].any()


def test_trial_without_its_audio_is_a_reject(tmp_path):
    changes = {0: {"audio_filepath": "none.flac"}}
    corpus = open_corpus(write_corpus(tmp_path, 1, changes=changes), "train")
    reject = ExampleMaker(run_over(tmp_path), BYTES).eval_example(corpus[0])
    assert isinstance(reject, Reject)
    assert reject.reason == "missing"


def task_of(folder, row, **text):
    """A run with the template phi4, and the utterance of a row of a task in its corpus."""
    write_corpus(folder, 2)
    (folder / "task.jsonl").write_text(json.dumps(row))
    run = dataclasses.replace(run_over(folder), text=Text(**{"template": "phi4"} | text))
    return run, open_corpus(folder, "task")[0]


ASKED = {"audio": "audio/0.flac", "answer": spelled(0)}


def test_task_with_the_instruction_of_recognition_is_its_example_to_the_bit(tmp_path):
    row = ASKED | {"instruction": Text().instruction}
    run, asked = task_of(tmp_path, row)
    examples = ExampleMaker(run, BYTES)
    transcribed = open_corpus(tmp_path, "train")[0]
    told, right = (
        examples.train((1, one), np.random.default_rng(0)) for one in (asked, transcribed)
    )
    assert told.keys() == right.keys()
    for name, column in right.items():
        assert told[name].dtype == column.dtype
        assert told[name].tobytes() == column.tobytes()


def test_task_of_several_turns_and_clips_learns_its_answers_alone(tmp_path):
    clips = [{"audio": f"audio/{number}.flac"} for number in (0, 1)]
    first, last = {"role": "user", "content": ["a", *clips]}, {"role": "user", "content": "b"}
    said = [{"role": "assistant", "content": text} for text in ("xy", "z")]
    run, asked = task_of(tmp_path, {"messages": [first, said[0], last, said[1]]})
    columns = ExampleMaker(run, BYTES).train((0, asked), np.random.default_rng(0))
    end = BYTES.special("<|end|>")
    learnt = columns["tokens"][columns["loss_weight"] > 0].tolist()
    assert learnt == [*b"xy", end, *b"z", end]
    lengths = [-(-len(load_mel(x, MEL, longest=math.inf)) // 8) for x in asked.clips]
    assert [(columns["clips"] == number).sum() for number in (1, 2)] == lengths
    trial = ExampleMaker(run, BYTES).eval_example(asked)
    assert trial.columns["tokens"].tolist() == columns["tokens"].tolist()[:-2]
    assert (trial.reference, trial.task, trial.metric) == ("z", "instruct", "exact_match")


def test_task_of_text_alone_has_empty_patches(tmp_path):
    run, asked = task_of(tmp_path, {"instruction": "Say", "answer": "hi"})
    columns = ExampleMaker(run, BYTES).train((0, asked), np.random.default_rng(0))
    assert columns["patches"].shape == (len(columns["tokens"]), run.mel.p)
    assert not columns["patches"].any()
    assert not columns["clips"].any()
    text = dataclasses.replace(run, model=dataclasses.replace(run.model, front="none"))
    alone = TextExampleMaker(text, BYTES).train((0, asked), np.random.default_rng(0))
    for name in ("tokens", "loss_weight"):
        assert alone[name].tolist() == columns[name].tolist()


def test_trial_has_the_ids_of_its_options(tmp_path):
    run, asked = task_of(tmp_path, ASKED | {"answer": "ab", "options": ["ab", "c"]})
    trial = ExampleMaker(run, BYTES).eval_example(asked)
    end = BYTES.special("<|end|>")
    assert trial.choices == ((*b"ab", end), (*b"c", end))
    assert (trial.options, trial.metric) == (("ab", "c"), "choice")


@pytest.mark.parametrize(
    ("maker", "front", "row", "template", "reason"),
    [
        (ExampleMaker, "linear", {"instruction": "What?"}, "phi4", "malformed row"),
        (ExampleMaker, "linear", ASKED | {"instruction": "a"}, "plain", "not in the template"),
        (ExampleMaker, "linear", ASKED | {"audio": "no.wav"}, "phi4", "missing"),
        (TextExampleMaker, "none", ASKED, "phi4", "not in the template"),
    ],
)
def test_task_that_cannot_be_used_is_a_reject(tmp_path, maker, front, row, template, reason):
    write_corpus(tmp_path, 1)
    lines = [json.dumps(one) for one in (ASKED, row)]
    (tmp_path / "task.jsonl").write_text("\n".join(lines))
    run = dataclasses.replace(run_over(tmp_path), text=Text(template=template))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, front=front))
    asked = open_corpus(tmp_path, "task")[1]
    reject = maker(run, BYTES).train((2, asked), np.random.default_rng(0))
    assert isinstance(reject, Reject)
    assert (reject.source, reject.reason) == (2, reason)
    assert reason in reject_reasons(run.data)
