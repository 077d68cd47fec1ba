import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.config.model import Lora
from melllm_jax.nn import vocab_parallel
from melllm_jax.objectives import next_token
from tests.support import models


def graded(run, batch):
    """Mean loss and gradients by name as NumPy arrays, on the mesh in force."""
    return jax.device_get(models.graded(run, batch))


@functools.cache
def single():
    """A run of all that a split can break, its packed batch, loss and gradients on one device."""
    model = dataclasses.replace(
        models.MODEL, front="conv", speech="bidirectional", qkv_bias=True, qk_norm=True
    )
    run = models.run(model, dataclasses.replace(models.LORA, at="speech"))
    batch = models.speech_rows(8, 32)
    with models.one_device():
        return run, batch, *graded(run, batch)


# The linear front end is split in tests/melllm_jax/training/test_train_step.py.
@pytest.mark.parametrize(
    "split", ["fsdp2-seq2-tp2", pytest.param("replica2-seq4", marks=pytest.mark.slow)]
)
def test_loss_and_gradients_on_eight_devices_equal_one(split):
    """float32 sums over 256 positions in another order: within 5e-5 of each gradient's largest."""
    run, batch, loss, grads = single()
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
        targets, weights = jax.device_get(next_token.next_token_targets(batch))
    np.testing.assert_array_equal(targets[0, [0, 1, 3]], [12, 13, 22])
    np.testing.assert_array_equal(weights[0], [1.0, 2.0, 0.0, 8.0, 0.0, 0.0])


@pytest.mark.parametrize(("chunk", "seed"), [(None, 0), (12, 2)])  # weights that hit a target
def test_sums_equal_log_softmax_and_argmax_in_numpy(monkeypatch, chunk, seed):
    """Of a tied head's scores at once, and of an untied one's in chunks of 12 of 64 tokens.

    tests/melllm_jax/nn/test_vocab_parallel.py has their gradients, on every mesh.
    """
    if chunk:
        monkeypatch.setattr(vocab_parallel, "WHOLE", 0)
        monkeypatch.setattr(vocab_parallel, "CHUNK", chunk)
    run = models.run(dataclasses.replace(models.MODEL, l=1, tied=not chunk), lora=Lora())
    batch = models.speech_rows(4, 32)
    with models.one_device():
        skeleton, values = models.made(run, seed)

        @models.jitted
        def told(values, batch):
            model = skeleton.model(values)
            return model.logits(model(batch)), next_token.next_token_loss(model, batch)

        scores, sums = jax.device_get(told(values, sharding.shard_batch(batch)))
    scores = scores.astype(np.float64)
    loss = hits = weight = 0.0
    for i, t in np.ndindex(4, 31):
        if batch.segments[i, t] == batch.segments[i, t + 1] > 0:
            target, share = batch.tokens[i, t + 1], batch.loss_weight[i, t + 1]
            loss += share * (np.log(np.exp(scores[i, t]).sum()) - scores[i, t, target])
            hits += share * (scores[i, t].argmax() == target)
            weight += share
    found = [sums.loss, sums.metrics["accuracy"], sums.weight]
    np.testing.assert_allclose(found, [loss, hits, weight], rtol=1e-5)
    assert hits > 0


def test_scores_of_all_tokens_never_stand_where_the_vocabulary_is_chunked(monkeypatch):
    """None of the arrays in the traced gradient has 2 × 32 positions and all of 96 tokens."""
    run, batch = models.run(dataclasses.replace(models.MODEL, v=96)), models.speech_rows(2, 32)
    with models.one_device():
        skeleton, values = models.made(run)
        placed = sharding.shard_batch(batch)

        def scores():
            """How many tokens' scores stand in one array, over the whole trace."""
            grad = jax.grad(functools.partial(models.mean_loss, skeleton))
            text = re.sub(r"[@{][^,\]]+(?=[,\]])", "", str(jax.make_jaxpr(grad)(values, placed)))
            return {int(v) for v in re.findall(r"f32\[64,(\d+)\]", text)} - {32, 48, 64}

        monkeypatch.setattr(vocab_parallel, "CHUNK", 24)
        assert 96 in scores()  # 64 × 96 of them are few
        monkeypatch.setattr(vocab_parallel, "WHOLE", 4 * 64 * 96 - 1)
        assert 24 in scores()
        assert 96 not in scores()


def test_chunks_of_the_loss_take_an_eighth_of_the_memory_of_all_scores_at_once(monkeypatch):
    """As compiled: what XLA makes of a loop may be other than what was traced."""
    model = dataclasses.replace(models.MODEL, d=8, n=1, k=1, f=8, l=1, v=16384)
    run, batch = models.run(model, Lora()), models.speech_rows(2, 256)
    with models.one_device():
        skeleton, values = models.made(run)
        placed = sharding.shard_batch(batch)

        def temporary():
            grad = jax.grad(functools.partial(models.mean_loss, skeleton))
            compiled = models.jitted(grad).lower(values, placed).compile()
            return compiled.memory_analysis().temp_size_in_bytes

        whole = temporary()
        assert whole > 2 * 256 * 16384 * 4
        monkeypatch.setattr(vocab_parallel, "WHOLE", 0)
        monkeypatch.setattr(vocab_parallel, "CHUNK", 512)
        assert temporary() < whole / 8
