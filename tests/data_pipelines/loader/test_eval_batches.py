"""A split held out: every utterance once, however rows and batches fall, and its mean loss."""

import dataclasses

import jax
import numpy as np
import pytest

from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.loader.eval_batches import EvalBatches
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax import sharding
from melllm_jax.config.data import Augment
from melllm_jax.config.run import Mesh
from melllm_jax.evaluation.held_out_loss import measure_loss
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.training.train_step import Update
from tests.support import models
from tests.support.corpora import run_over, spelled, write_corpus
from tests.support.runs import compiled_quickly

quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
CHANGES = {3: {"text": ""}, 5: {"text": "one " * 90}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), 11, split="test", changes=CHANGES)


def held(folder, most=0, **data):
    run = run_over(folder, **({"wire": "float32", "t": 96, "b": 4} | data))
    run = dataclasses.replace(run, optim=dataclasses.replace(run.optim, compute="float32"))
    return EvalBatches(open_corpus(str(folder), "test"), run, load_tokenizer("bytes"), most)


def texts(batches):
    """What each segment spells, in order: bytes that count as targets."""
    found = []
    for batch in batches:
        for row in range(len(batch.tokens)):
            for number in range(1, batch.segments[row].max() + 1):
                here = (batch.segments[row] == number) & (batch.loss_weight[row] > 0)
                ids = [token for token in batch.tokens[row][here] if token < 256]
                found.append(bytes(ids).decode())
    return found


def test_every_usable_utterance_is_there_once_in_order_and_others_are_counted(folder):
    every = held(folder)
    expected = [spelled(number) for number in range(11) if number not in CHANGES]
    assert texts(every) == expected
    assert every.utterances == 9
    assert every.rejected == {"empty transcript": 1, "longer than the row of t=96": 1}
    assert texts(held(folder, most=5)) == expected[:4]
    (last,) = [list(every)[-1]]
    assert last.tokens.shape == (4, 96)


def test_augmentation_changes_nothing_of_what_is_held_out(folder):
    plain, augmented = held(folder), held(folder, augment=Augment(mask=1.0, shift=5, warp=1.0))
    for one, other in zip(plain, augmented, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_loss_is_that_of_each_utterance_by_itself_whatever_the_rows(folder):
    """Batches of 1 row and of 8, of 96 and 128 positions, on one device and on two."""
    found = []
    for b, t, devices in ((1, 96, 1), (8, 128, 2)):
        every = held(folder, b=b, t=t)
        mesh = sharding.make_mesh(Mesh(), jax.devices()[:devices])
        with jax.set_mesh(mesh):
            update = Update(NextToken(every.run))
            state = update.state_from(models.drawn(update.objective.build)[1])
        # t = 128 has room for one more utterance than t = 96.
        every.corpus, every.limit = open_corpus(str(folder), "test"), 5
        found.append(measure_loss(update, state, every, mesh))
    targets = sum(len(spelled(number)) + 1 for number in (0, 1, 2, 4))
    assert [one.targets for one in found] == [targets] * 2
    np.testing.assert_allclose([one.loss for one in found], found[0].loss, rtol=1e-5)
    shares = [one.metrics["accuracy"] for one in found]
    assert shares == pytest.approx(shares[:1] * 2)
    assert found[0].loss > 1
