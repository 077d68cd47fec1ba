"""Words to be spoken: the prompt of each template, the clip that is written, and bad examples."""

import dataclasses
import math

import numpy as np
import pytest

from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import ExampleMaker, load_mel
from data_pipelines.examples.run_examples import make_examples
from data_pipelines.examples.tts_example import TtsExampleMaker, tts_prompt_columns
from data_pipelines.loader.pipeline import train_batches
from data_pipelines.reject import Reject, Unusable
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.turns import CLIP, Turn
from melllm_jax.config.features import Text
from melllm_jax.config.overrides import override
from tests.support.corpora import MEL, run_over, write_corpus

BYTES = load_tokenizer("bytes")
AUDIO, END = BYTES.special("<|audio|>"), BYTES.special("<|end|>")
USER, ASSISTANT = BYTES.special("<|user|>"), BYTES.special("<|assistant|>")


def speaking(run, **changes):
    return override(run, {"model.writes": "speech", "model.front": "none", **changes})


def made(folder, fields, **changes):
    """The example of a corpus of one, whose manifest has these fields changed."""
    corpus = open_corpus(write_corpus(folder, 1, changes={0: fields}), "train")
    run = speaking(run_over(folder, wire="float32"), **changes)
    return TtsExampleMaker(run, BYTES).train((3, corpus[0]), np.random.default_rng(0))


def test_example_holds_the_words_what_begins_speech_the_mel_and_the_end(tmp_path):
    columns = made(tmp_path, {"text": "hi"})
    mel = load_mel(open_corpus(tmp_path, "train")[0], MEL, longest=math.inf)
    t = math.ceil(len(mel) / MEL.r)
    assert columns["tokens"].tolist() == [*b"hi", AUDIO, *[AUDIO] * t, END]
    assert columns["clips"].tolist() == [0, 0, 0, *[-1] * t, 0]
    assert columns["loss_weight"].tolist() == [0.0, 0.0, 1.0, *[1.0] * t, 1.0]
    assert columns["frames"].sum() == len(mel)
    assert columns["sources"].tolist() == [3] * (t + 4)
    np.testing.assert_array_equal(columns["patches"][3:-1].reshape(-1, MEL.m)[: len(mel)], mel)


def test_another_template_asks_for_it(tmp_path):
    columns = made(tmp_path, {"text": "hi"}, **{"text.template": "phi4", "text.request": "Say"})
    asked = [USER, *b"Say", *b"hi", END, ASSISTANT, AUDIO]
    assert columns["tokens"].tolist()[: len(asked)] == asked
    assert columns["loss_weight"].tolist()[: len(asked)] == [0.0] * (len(asked) - 1) + [1.0]


@pytest.mark.parametrize(
    ("fields", "changes", "reason"),
    [
        ({"text": " "}, {}, "empty transcript"),
        ({"text": "a\ud800b"}, {}, "unknown characters"),
        ({"audio_filepath": "none.flac"}, {}, "missing"),
        ({"duration": 31.0}, {}, "longer than 30 s"),
        ({}, {"data.t": 8}, "longer than the row of t=8"),
    ],
)
def test_example_of_an_unusable_utterance_is_a_reject(tmp_path, fields, changes, reason):
    reject = made(tmp_path, fields, **changes)
    assert isinstance(reject, Reject)
    assert (reject.source, reject.id, reject.reason) == (3, "id0", reason)


def test_example_of_a_flaw_or_of_a_task_without_a_spoken_answer_is_a_reject(tmp_path):
    maker = TtsExampleMaker(speaking(run_over(tmp_path)), BYTES)
    flawed = Utterance("i", "", 0.0, "", flaw="a:1: bad")
    asked = (Turn("user", ("Why?",)), Turn("assistant", ("So.",)))
    unspoken = Utterance("i", "So.", 0.0, "", turns=asked)
    for utterance, reason in ((flawed, "malformed row"), (unspoken, "not in the template")):
        assert maker.train((0, utterance), np.random.default_rng(0)).reason == reason


def answered(folder):
    """A task of the first two sounds of a corpus: one asks, and one is the answer's."""
    first, second, *_ = open_corpus(write_corpus(folder, 2), "train")
    turns = (Turn("user", (CLIP, "Why?")), Turn("assistant", ("So.", CLIP)))
    return dataclasses.replace(first, text="So.", turns=turns, more=(second,))


def test_an_answer_is_written_and_then_spoken_after_what_was_heard(tmp_path):
    utterance = answered(tmp_path)
    run = speaking(run_over(tmp_path, wire="float32"), **{"model.front": "linear"})
    run = override(run, {"text.template": "phi4"})
    columns = TtsExampleMaker(run, BYTES).train((3, utterance), np.random.default_rng(0))
    heard, spoken = (load_mel(clip, MEL, longest=math.inf) for clip in utterance.clips)
    lengths = [math.ceil(len(mel) / MEL.r) for mel in (heard, spoken)]
    asked = [USER, *[AUDIO] * lengths[0], *b"Why?", END, ASSISTANT]
    reply = [*b"So.", AUDIO, *[AUDIO] * lengths[1], END]
    assert columns["tokens"].tolist() == asked + reply
    assert columns["loss_weight"].tolist() == [0.0] * len(asked) + [1.0] * len(reply)
    clips = [0, *[1] * lengths[0], *[0] * 6, *[0] * 4, *[-2] * lengths[1], 0]
    assert columns["clips"].tolist() == clips
    written = columns["patches"][columns["clips"] < 0].reshape(-1, MEL.m)
    np.testing.assert_array_equal(written[: len(spoken)], spoken)
    # Asked for text alone, a model learns the same answer, and hears no sound of it.
    read = ExampleMaker(run, BYTES).train((3, utterance), np.random.default_rng(0))
    assert read["tokens"].tolist() == [*asked, *b"So.", END]
    assert set(read["clips"]) == {0, 1}
    trial = ExampleMaker(run, BYTES).eval_example(utterance)
    assert (trial.columns["tokens"].tolist(), trial.duration) == (asked, utterance.duration)


def test_a_question_in_sound_is_a_reject_where_nothing_hears(tmp_path):
    maker = TtsExampleMaker(speaking(run_over(tmp_path), **{"text.template": "phi4"}), BYTES)
    reject = maker.train((0, answered(tmp_path)), np.random.default_rng(0))
    assert (reject.reason, "without a front end" in reject.detail) == ("not in the template", True)


def test_a_voice_is_gone_on_from_after_both_texts():
    voice = np.arange(19 * MEL.m, dtype=np.float32).reshape(19, MEL.m)
    columns = tts_prompt_columns(BYTES, Text(), MEL, "so", ("hi", voice))
    assert columns["tokens"].tolist() == [*b"hi so", *[AUDIO] * 3]
    assert columns["clips"].tolist() == [0] * 6 + [-1, -1]
    np.testing.assert_array_equal(columns["patches"][6:].reshape(-1, MEL.m), voice[:16])
    with pytest.raises(Unusable):
        tts_prompt_columns(BYTES, Text(), MEL, "")


def test_each_source_is_used_as_it_says(tmp_path):
    """One corpus three times: heard, spoken and read, in rows side by side."""
    write_corpus(tmp_path, 6)
    run = speaking(run_over(tmp_path, wire="float32"), **{"model.front": "linear"})
    uses = [{"path": str(tmp_path), "use": use} for use in ("asr", "tts", "text")]
    run = override(run, {"data.sources": uses, "data.b": 2, "data.t": 64})
    examples, utterance = make_examples(run, BYTES), open_corpus(tmp_path, "train")[0]
    clips = [
        set(examples.train((i, utterance), np.random.default_rng(0))["clips"]) for i in range(4)
    ]
    assert clips == [{0, 1}, {0, -1}, {0}, {0, 1}]  # the last is of no source of the run's own
    stream = iter(train_batches(run, BYTES))
    batches = [next(stream) for _ in range(6)]
    stream.close()
    signs = [
        np.unique(np.concatenate([np.sign(b.clips[b.sources == i]) for b in batches]))
        for i in (1, 2)
    ]
    assert [x.tolist() for x in signs] == [[-1, 0], [0]]
    assert any((b.clips > 0).any() for b in batches)
