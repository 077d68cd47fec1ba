"""The door for new objectives: companions are asked and stay as they are, in no checkpoint."""

import contextlib
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.objectives.objective import Companion, LossSums
from melllm_jax.training.loop import train
from melllm_jax.training.train_step import Update
from tests.support import models
from tests.support.runs import (
    ListStream,
    batches_of,
    compiled_once,
    compiled_quickly,
    corpus,
    lines,
    tiny,
)

once = pytest.fixture(scope="module", autouse=True)(compiled_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
TEACHER_SEED = 7


@dataclasses.dataclass(frozen=True)
class Distillation(NextToken):
    """The next token, and the distance of the hidden states to a frozen model of the same sizes."""

    def loss(self, model, batch, key=None, companions=None):
        sums = super().loss(model, batch, key)
        off = model(batch).astype(jnp.float32) - companions["teacher"](batch).astype(jnp.float32)
        weights = self.target_weights(batch)
        off = jnp.sum(jnp.mean(off**2, axis=-1) * weights)
        return LossSums(sums.loss + off, sums.weight, {**sums.metrics, "off": off})

    def companions(self):
        def load(shapes):
            weights = teacher(self.run)
            return {name: weights[name].astype(x.dtype) for name, x in shapes.items()}

        return {"teacher": Companion(self.build, load)}


@functools.cache
def teacher(run):
    """Its weights in float32 on one device, drawn once."""
    with models.one_device():
        return models.drawn(NextToken(run).build, TEACHER_SEED)[1]


@functools.cache
def update_of(run):
    return Update(Distillation(run))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny(corpus(tmp_path_factory.mktemp("data")), steps=3, every=2)


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    """Three updates that nothing stopped: the folder, the last state, the companions before."""
    folder = tmp_path_factory.mktemp("straight")
    state, before = trained(run, folder, 3)
    return types.SimpleNamespace(folder=folder, state=state, before=before)


def trained(run, folder, steps):
    """The last state of so many updates on one device, and the companions before."""
    folder.mkdir(exist_ok=True)
    with contextlib.closing(batches_of(run)) as batches:
        stream = ListStream([next(batches) for _ in range(steps)])
    with jax.set_mesh(sharding.make_mesh(run.mesh, jax.devices()[:1])):
        update = update_of(run)
        before = update.load_companions()
        return train(update, stream, folder), before


def test_companion_is_bfloat16_asked_by_the_loss_and_never_saved(straight):
    rows = lines(straight.folder)
    assert all(row["off"] > 0 for row in rows)
    assert rows[0]["loss"] > rows[0]["off"]
    teacher = straight.state.companions["teacher"]
    assert {x.dtype for x in teacher.values()} == {jnp.dtype(jnp.bfloat16)}
    assert all(np.array_equal(x, straight.before["teacher"][name]) for name, x in teacher.items())
    saved = {path.name for path in (straight.folder / "checkpoints/2").rglob("*")}
    assert saved and not any("teacher" in name for name in saved)


def test_run_with_a_companion_goes_on_as_if_it_had_not_stopped(straight, run, tmp_path):
    trained(run, tmp_path, 2)
    again, _ = trained(run, tmp_path, 3)
    left, right = (jax.tree.leaves(jax.device_get(x)) for x in (straight.state, again))
    assert all(np.array_equal(x, y) for x, y in zip(left, right, strict=True))


def test_companion_has_no_gradient_and_no_optimiser_state(run):
    with models.one_device():
        update = update_of(run)
        shapes = update.shapes(jax.sharding.get_mesh())
        plain = Update(NextToken(run)).shapes(jax.sharding.get_mesh())
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert size(shapes.opt) == size(plain.opt)
    assert shapes.trained.keys() == plain.trained.keys()
    assert size(shapes) == size(plain) + size(shapes.companions) > size(plain)


def test_objective_of_micro_batches_is_that_of_the_whole(straight, run):
    split = dataclasses.replace(run, optim=dataclasses.replace(run.optim, micro=2))
    with contextlib.closing(batches_of(run)) as batches:
        batch = next(batches)
    with models.one_device():
        update = update_of(split)
        metrics = jax.jit(update)(update.init_state(), sharding.shard_batch(batch))[1]
    found = {name: float(metrics[name]) for name in ("loss", "off", "accuracy")}
    whole = lines(straight.folder)[0]  # its first update has the same batch
    assert found == pytest.approx({name: whole[name] for name in found}, rel=1e-5)
