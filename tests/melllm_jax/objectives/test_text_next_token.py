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
from melllm_jax.config.overrides import override
from melllm_jax.errors import Mistake
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.objectives.text_next_token import TextNextToken
from melllm_jax.training.train_step import Update
from tests.support import models
from tests.support.runs import (
    arguments,
    compiled_once,
    corpus,
    find_one_device,
    losses,
    refused,
    tiny,
    trained,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
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
        placed = sharding.shard_batch(batch)
        sums = jax.device_get(jax.jit(update.loss_sums)(state, placed))
        model = update.skeleton.model(state.trained | state.frozen)
        scores = jax.device_get(jax.jit(lambda b: model.logits(model(b)))(placed))
    scores = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    due = [
        -scores[i, j, batch.tokens[i, j + 1]]
        for i in range(batch.tokens.shape[0])
        for j in range(batch.tokens.shape[1] - 1)
        if batch.segments[i, j + 1] == batch.segments[i, j] > 0
    ]
    assert sums.weight == len(due)
    assert sums.loss == pytest.approx(sum(due), rel=1e-5)


def test_training_on_text_learns_and_goes_on_where_it_stopped(run, tmp_path):
    trained(run, tmp_path / "straight")
    found = losses(tmp_path / "straight")
    assert found[6] < found[1]
    trained(override(run, {"optim.steps": 6}), tmp_path / "again")
    assert losses(tmp_path / "again") == found


def test_train_command_trains_on_text_and_what_needs_hearing_is_refused(
    data, tmp_path, capsys, monkeypatch
):
    find_one_device(monkeypatch)
    words = arguments(data, tmp_path / "run", "--model.front", "none", steps=2)
    assert cli.main(words) == 0
    assert list(losses(tmp_path / "run")) == [1, 2]
    told = refused(
        ["evaluate", "--run", str(tmp_path / "run"), "--data", str(data), "--split", "train"],
        capsys,
    )
    assert told.endswith('model.front="none": it reads text alone, and hears nothing')
    words = arguments(data, tmp_path / "no", "--model.front", "none", "--scoring.every", "1")
    assert refused(words, capsys) == ('scoring.every=1: model.front="none" hears nothing: give 0')
    assert not (tmp_path / "no").exists()
