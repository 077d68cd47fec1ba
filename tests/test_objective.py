import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import config, layout, objective
from melllm_jax.batch import Batch
from tests import models


def graded(run, batch):
    """Mean loss and gradients by name as NumPy arrays, on the mesh in force."""
    return jax.device_get(models.graded(run, batch))


@pytest.fixture(scope="module", params=["linear", "conv"])
def single(request):
    """A run with LoRA, its packed batch, and loss and gradients on one device."""
    both_ways = {"linear": "causal", "conv": "bidirectional"}[request.param]
    model = dataclasses.replace(models.MODEL, front=request.param, speech=both_ways)
    run, batch = models.run(model), models.speech_rows(8, 32)
    with models.one_device():
        return run, batch, *graded(run, batch)


@pytest.mark.parametrize("split", models.SPLITS)
def test_loss_and_gradients_on_eight_devices_equal_one(single, split):
    """float32 sums over 256 positions in another order: within 5e-5 of each gradient's largest."""
    run, batch, loss, grads = single
    with models.split_as(split):
        split_loss, split_grads = graded(run, batch)
    assert split_loss == pytest.approx(loss, rel=1e-6)
    for name, grad in grads.items():
        largest = np.abs(grad).max()
        assert largest > 0, name
        np.testing.assert_allclose(split_grads[name], grad, rtol=0, atol=5e-5 * largest)


def test_a_target_is_the_next_token_of_the_same_segment():
    columns = {
        "tokens": [11, 12, 13, 21, 22, 99],
        "segments": [1, 1, 1, 2, 2, 0],
        "loss_weight": [0.5, 1.0, 2.0, 4.0, 8.0, 0.0],
    }
    empty = dict.fromkeys(Batch._fields, jnp.zeros((1, 6)))
    batch = Batch(**empty | {name: jnp.asarray([x]) for name, x in columns.items()})
    with models.one_device():
        targets, weights = jax.device_get(objective.targets_of(batch))
    np.testing.assert_array_equal(targets[0, [0, 1, 3]], [12, 13, 22])
    np.testing.assert_array_equal(weights[0], [1.0, 2.0, 0.0, 8.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def small():
    run = models.run(dataclasses.replace(models.MODEL, l=1), lora=config.Lora())
    return run, models.speech_rows(4, 32)


def test_sums_equal_log_softmax_and_argmax_in_numpy(small):
    run, batch = small
    with models.one_device():
        skeleton, values = models.made(run)
        logits = models.jitted(lambda w, b: (lambda m: m.logits(m(b)))(skeleton.model(w)))
        scored = models.jitted(lambda w, b: objective.next_token(skeleton.model(w), b))
        placed = layout.place(batch)
        scores, sums = np.asarray(logits(values, placed), np.float64), scored(values, placed)
    loss = hits = weight = 0.0
    for i, t in np.ndindex(4, 31):
        if batch.segments[i, t] == batch.segments[i, t + 1] > 0:
            target, share = batch.tokens[i, t + 1], batch.loss_weight[i, t + 1]
            loss += share * (np.log(np.exp(scores[i, t]).sum()) - scores[i, t, target])
            hits += share * (scores[i, t].argmax() == target)
            weight += share
    np.testing.assert_allclose(sums, [loss, hits, weight], rtol=1e-5)
    assert hits > 0


def test_a_loss_in_chunks_equals_the_loss_at_once(small, monkeypatch):
    run, batch = small
    with models.split_as("fsdp2-seq2-tp2"):
        whole = graded(run, batch)
        monkeypatch.setattr(objective, "CHUNK", 8)
        parts = graded(run, batch)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    for key, grad in whole[1].items():
        np.testing.assert_allclose(parts[1][key], grad, rtol=0, atol=1e-5 * np.abs(grad).max())


def test_no_scores_of_a_whole_row_stand_where_time_is_chunked(monkeypatch):
    """None of the arrays in the traced gradient has all of 2 × 32 positions and 96 tokens."""
    run, batch = models.run(dataclasses.replace(models.MODEL, v=96)), models.speech_rows(2, 32)
    with models.one_device():
        skeleton, values = models.made(run)
        placed = layout.place(batch)

        def scores():
            """How many positions' scores stand in one array, over the whole trace."""
            grad = jax.grad(functools.partial(models.mean_loss, skeleton))
            text = re.sub(r"@[^,\]]+(?=[,\]])", "", str(jax.make_jaxpr(grad)(values, placed)))
            return {int(b) * int(t) for b, t in re.findall(r"f32\[(\d+),(\d+),96\]", text)}

        assert max(scores()) == 64
        monkeypatch.setattr(objective, "CHUNK", 8)
        assert max(scores()) == 16
