import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.training.train_step import Update, batch_counts
from tests.support import models

MODEL = dataclasses.replace(models.MODEL, l=2, remat="none")


def advanced(run, batch, updates=1):
    """The state before, the state after so many updates, and the last metrics; host arrays.

    Layouts are checked to stay as they were.
    """
    update = Update(NextToken(run))
    state = first = update.state_from(models.made(run)[1])
    step = models.jitted(update)
    for _ in range(updates):
        before, (state, metrics) = state, step(state, sharding.shard_batch(batch))
        same = lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim)
        assert jax.tree.all(jax.tree.map(same, before.trained, state.trained))
    return jax.device_get((first, state, metrics))


def assert_close(ours, theirs, most):
    for name, x in theirs.items():
        scale = np.abs(x).max()
        np.testing.assert_allclose(ours[name], x, rtol=0, atol=most * scale, err_msg=name)


@pytest.fixture(scope="module")
def batch():
    return models.speech_rows(8, 32)


def test_muon_in_micro_batches_on_eight_devices_makes_the_update_of_one(batch):
    """Newton-Schulz steps double the 1e-6 of sums in another order; lr is 5e-3 here.

    The first of two updates has rate 0.
    """
    with models.one_device():
        _, one, expected = advanced(models.run(MODEL, kind="muon"), batch, updates=2)
    with models.split_as("fsdp2-seq2-tp2"):
        run = models.run(MODEL, kind="muon", micro=2)
        first, state, metrics = advanced(run, batch, updates=2)
    assert_close(state.trained, one.trained, 1e-4)
    for name in ("loss", "accuracy", "grad_norm", "lr"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4), name
    moved = {name for name in state.trained if (state.trained[name] != first.trained[name]).any()}
    assert moved == state.trained.keys()


def test_frozen_layers_stay_bit_equal_and_the_others_move(batch):
    model = dataclasses.replace(MODEL, l=3, scan=True)
    run = models.run(model, freeze=(0, 2), weight_decay=0.5)
    with models.one_device():
        first, state, _ = advanced(run, batch, updates=2)
    for name, x in state.trained.items():
        before = first.trained[name]
        if name.startswith("stack."):
            np.testing.assert_array_equal(x[[0, 2]], before[[0, 2]], err_msg=name)
            assert (x[1] != before[1]).any(), name
        else:
            assert (x != before).any(), name


@functools.cache
def lora():
    """An update of LoRA with dropout in bfloat16, compiled, and the state before the first."""
    some = dataclasses.replace(models.LORA, dropout=0.5)
    run = models.run(
        dataclasses.replace(MODEL, front="conv"), some, compute="bfloat16", train="lora"
    )
    update = Update(NextToken(run))
    return models.jitted(update), update.state_from(models.made(run)[1])


def test_lora_training_leaves_the_llm_in_bfloat16_bit_equal_and_without_optimiser_state(batch):
    with models.one_device():
        step, first = lora()
        placed = sharding.shard_batch(batch)
        state, metrics = step(step(first, placed)[0], placed)
        first, state, metrics = jax.device_get((first, state, metrics))
    llm = {name for name in state.frozen if not name.startswith("front.")}
    assert "stack.blocks.attn.q" in llm and "embed" in llm
    assert state.frozen.keys() - llm == {"front.mean", "front.invstd"}
    for name, x in state.frozen.items():
        assert x.dtype == (jnp.bfloat16 if name in llm else np.float32), name
        np.testing.assert_array_equal(x, first.frozen[name], err_msg=name)
    assert {x.dtype for x in state.trained.values()} == {np.dtype("float32")}
    assert all((x != first.trained[name]).any() for name, x in state.trained.items())
    held = sum(x.size for x in jax.tree.leaves(state.opt) if x.ndim)
    assert held == 2 * sum(x.size for x in state.trained.values())
    assert np.isfinite(metrics["loss"])


def test_an_update_that_is_not_finite_changes_nothing_and_halts_for_good(batch):
    bad = batch._replace(patches=np.full_like(batch.patches, np.inf))
    with models.one_device():
        step, state = lora()
        state, _ = step(state, sharding.shard_batch(batch))
        good = jax.device_get(state)
        state, metrics = step(state, sharding.shard_batch(bad))
        assert not metrics["finite"]
        halted = state, step(state, sharding.shard_batch(batch))[0]
        for after in halted:
            assert bool(after.halted)
            jax.tree.map(np.testing.assert_array_equal, good[:4], jax.device_get(after)[:4])


def test_a_batch_is_counted_by_what_is_in_it(batch):
    """Segments of one row from source 0, of the others from source 1."""
    sources = np.ones_like(batch.sources)
    sources[0] = 0
    with models.one_device():
        counts = batch_counts(sharding.shard_batch(batch._replace(sources=sources)), 2, 0.01)
    assert counts["tokens"] == (batch.segments > 0).sum()
    assert counts["speech"] == (batch.clips > 0).sum() > 0
    assert counts["audio"] == pytest.approx(batch.frames.sum() / 100)
    np.testing.assert_array_equal(counts["examples"], [2, 14])


def test_dropout_draws_anew_at_every_step_and_the_same_at_the_same_step(batch):
    """The key is folded from the seed and the step alone, so a resumed run draws as one whole."""
    with models.one_device():
        step, state = lora()
        loss = lambda at: float(
            step(state._replace(step=jnp.int32(at)), sharding.shard_batch(batch))[1]["loss"]
        )
        first, again, later = loss(3), loss(3), loss(4)
    assert first == again
    assert first != later
