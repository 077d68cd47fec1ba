import jax
import numpy as np
import pytest

from data_pipelines.examples.asr_example import EvalExample
from data_pipelines.examples.interleave import Clip, Words, interleave
from launch.runs.option_scorer import OptionScorer
from melllm_jax.inference.generate import prompt_batch
from melllm_jax.sharding import shard_batch
from tests.support import models

OPTIONS = {"a": (7, 2), "bcd": (8, 9, 11, 2), "é": (8, 2)}


def trial(number):
    rng = np.random.default_rng(number)
    mel = rng.standard_normal((201 + 8 * number, models.MEL.m), dtype=np.float32)
    parts = [Words((1, 3), 0.0), Clip(mel), Words((4,), 0.0)]
    columns = interleave(parts, r=models.MEL.r, audio=5)
    return EvalExample(
        f"t{number}", "a", 1.0, columns, "t", "choice", ("a",), tuple(OPTIONS), (*OPTIONS.values(),)
    )


@jax.jit
def logits(model, batch):
    return model.logits(model(batch))


def alone(model, one, ids):
    """Nats of an option after its prompt, in a row of its own, token by token."""
    columns = {
        name: np.concatenate([x, np.zeros((len(ids), *x.shape[1:]), x.dtype)])
        for name, x in one.columns.items()
    }
    columns["tokens"][-len(ids) :] = ids
    batch = shard_batch(prompt_batch([columns], 4))
    nats = jax.nn.log_softmax(jax.device_get(logits(model, batch))[0], axis=-1)
    return sum(float(nats[-1 - len(ids) + i, token]) for i, token in enumerate(ids))


@pytest.mark.usefixtures("mesh")
def test_options_packed_into_rows_score_as_each_alone():
    """Nine continuations of over 30 positions take more than one batch of four rows of 64."""
    skeleton, values = models.made(models.run())
    model = skeleton.model(values)
    trials = [trial(number) for number in range(3)]
    found = OptionScorer(model, 16)(trials, 4)
    for one, choice in zip(trials, found, strict=True):
        expected = [alone(model, one, ids) for ids in one.choices]
        np.testing.assert_allclose(choice.scores["sum"], expected, atol=1e-5)
        tokens, sizes = [2, 4, 2], [1, 3, 2]
        np.testing.assert_allclose(choice.scores["token"], np.divide(expected, tokens), atol=1e-5)
        np.testing.assert_allclose(choice.scores["byte"], np.divide(expected, sizes), atol=1e-5)
        assert choice.best("sum") == one.options[int(np.argmax(expected))]
    assert OptionScorer(model, 16)([], 4) == []
