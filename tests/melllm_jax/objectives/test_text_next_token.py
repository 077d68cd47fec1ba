"""Text alone: no sound is read, every token is a target, and the model learns."""

import json

import jax
import numpy as np
import pytest

from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.text_example import TextExampleMaker
from data_pipelines.loader.pipeline import train_batches
from data_pipelines.text.load_tokenizer import load_tokenizer
from launch import cli
from melllm_jax import sharding
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.overrides import override
from melllm_jax.errors import Mistake
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.objectives.text_next_token import TextNextToken
from melllm_jax.training.train_step import Update
from tests.support import models
from tests.support.runs import (
    arguments,
    ask_to_stop_at,
    compiled_once,
    corpus,
    find_one_device,
    losses,
    refused,
    tiny,
    traced_once,
    trained,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
traced = pytest.fixture(scope="module", autouse=True)(traced_once)
BYTES = load_tokenizer("bytes")
END = BYTES.special("<|end|>")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve utterances, of which one has lost its sound."""
    changes = {3: {"audio_filepath": "none.flac"}}
    return corpus(tmp_path_factory.mktemp("data"), changes=changes)


@pytest.fixture(scope="module")
def run(data):
    return override(tiny(data), {"model.front": "none", "optim.lr": 1e-2})


def test_objective_is_chosen_by_the_front_end_and_refuses_another(run, data):
    assert isinstance(objective_of(run), TextNextToken)
    assert type(objective_of(tiny(data))) is NextToken
    with pytest.raises(Mistake, match='model.front="none": reads no speech'):
        NextToken(run)
    with pytest.raises(Mistake, match='model.front="linear": text alone needs none'):
        TextNextToken(tiny(data))


def test_batches_hold_the_texts_alone_and_no_sound_is_opened(run, data):
    stream = iter(train_batches(run, BYTES))
    batch = next(stream)
    assert stream.counts()["bad"] == {}  # the lost sound is not missed
    stream.close()
    assert batch.patches.shape == (2, 64, 0)
    assert not batch.clips.any()
    texts = {json.loads(row)["text"] for row in (data / "train.jsonl").read_text().splitlines()}
    for row, segments in zip(batch.tokens, batch.segments, strict=True):
        for segment in range(1, segments.max() + 1):
            ids = row[segments == segment]
            assert (ids[0], ids[-1]) == (END, END)
            assert BYTES.decode(ids[1:-1].tolist()) in texts
    starts = batch.positions == 0
    assert (batch.loss_weight == (batch.segments > 0) & ~starts).all()


def test_text_that_is_longer_than_the_row_or_empty_is_a_reject(run):
    examples = TextExampleMaker(run, BYTES)
    rng = np.random.default_rng(0)
    long = examples.train((0, Utterance("a", "x" * 63, 1.0, "")), rng)
    assert (long.reason, long.detail) == ("longer than the row of t=64", "a: takes t=65 positions")
    assert examples.train((0, Utterance("b", " ", 1.0, "")), rng).reason == "empty transcript"
    assert len(examples.train((0, Utterance("c", "x" * 62, 1.0, "")), rng)["tokens"]) == 64


def test_loss_is_that_of_every_token_given_those_before_it(run):
    stream = iter(train_batches(run, BYTES))
    batch = next(stream)
    stream.close()
    with models.one_device():
        update = Update(TextNextToken(run))
        state = update.init_state()

        @jax.jit
        def told(state, batch):
            model = update.skeleton.model(state.trained | state.frozen)
            return update.loss_sums(state, batch), model.logits(model(batch))

        sums, scores = jax.device_get(told(state, sharding.shard_batch(batch)))
    scores = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    due = [
        -scores[i, j, batch.tokens[i, j + 1]]
        for i in range(batch.tokens.shape[0])
        for j in range(batch.tokens.shape[1] - 1)
        if batch.segments[i, j + 1] == batch.segments[i, j] > 0
    ]
    assert sums.weight == len(due)
    assert sums.loss == pytest.approx(sum(due), rel=1e-5)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """The folder of six updates by the command that nothing stopped."""
    workdir = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        find_one_device(patch)
        given = ["--model.front", "none", "--optim.lr", "0.01"]
        assert cli.main(arguments(data, workdir, *given)) == 0
    return workdir


def test_training_on_text_learns_and_goes_on_where_it_stopped(straight, tmp_path):
    found = losses(straight)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    assert found[6] < found[1]
    run = run_folder.read_run(str(straight))
    trained(run, tmp_path, ask_to_stop_at(2))
    assert list(losses(tmp_path)) == [1, 2, 3]
    trained(run, tmp_path)
    assert losses(tmp_path) == found


def test_what_needs_hearing_is_refused_of_a_model_of_text(straight, data, tmp_path, capsys):
    given = ["--run", str(straight), "--data", str(data), "--split", "train"]
    told = refused(["evaluate", *given], capsys)
    assert told.endswith('model.front="none": it reads text alone, and hears nothing')
    words = arguments(data, tmp_path / "no", "--model.front", "none", "--scoring.every", "1")
    assert refused(words, capsys) == ('scoring.every=1: model.front="none" hears nothing: give 0')
    assert not (tmp_path / "no").exists()
